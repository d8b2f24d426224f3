//! Matrix products by cublasLt, each shape planned once.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};

use crate::device::{Kind, Matmul, Pointer};
use crate::{Error, Result};

/// Plans that are kept. Captions make products of ever new heights; beyond this all are forgotten.
const PLANS: usize = 4096;

pub struct Matmuls {
    handle: sys::cublasLtHandle_t,
    workspace: Pointer,
    workspace_bytes: usize,
    plans: HashMap<Key, Plan>,
}

/// What a plan depends on.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    shape: [usize; 3],
    transposed: [bool; 2],
    kinds: [Kind; 2],
    adds: bool,
    bias: bool,
    /// Of `a`, `b`, what is added, and the output: bytes.
    alignments: [u32; 4],
}

struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    /// Of cublasLt's A, B, and of C and D.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn data_type(kind: Kind) -> sys::cudaDataType {
    match kind {
        Kind::F32 => sys::cudaDataType::CUDA_R_32F,
        Kind::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Kind::F16 => sys::cudaDataType::CUDA_R_16F,
    }
}

/// The largest power of two that divides an address, up to what cublasLt asks about.
fn alignment(at: Pointer) -> u32 {
    1 << at.trailing_zeros().min(8)
}

impl Key {
    fn of(m: &Matmul) -> Key {
        Key {
            shape: [m.m, m.n, m.k],
            transposed: [m.transpose_a, m.transpose_b],
            kinds: [m.inputs, m.output],
            adds: m.add.is_some(),
            bias: m.bias.is_some(),
            alignments: [m.a, m.b, m.add.unwrap_or(m.out), m.out].map(alignment),
        }
    }
}

/// A row-major matrix is a column-major one transposed: `outᵀ = op(b)ᵀ · op(a)ᵀ`, so that cublasLt's A is `b`.
fn describe(m: &Matmul) -> Result<(sys::cublasLtMatmulDesc_t, [sys::cublasLtMatrixLayout_t; 3])> {
    let failed = Error::cuda("a cublasLt descriptor");
    let describe = || -> std::result::Result<_, result::CublasError> {
        // Float32 products in float32, without TF32; 16-bit ones summed in float32.
        let operation = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F)?;
        use sys::cublasLtMatmulDescAttributes_t::*;
        for (attribute, transposed) in [(CUBLASLT_MATMUL_DESC_TRANSA, m.transpose_b), (CUBLASLT_MATMUL_DESC_TRANSB, m.transpose_a)] {
            let transposed = i32::from(transposed);
            // SAFETY: the attribute is an int32.
            unsafe { result::set_matmul_desc_attribute(operation, attribute, (&raw const transposed).cast(), 4)? };
        }
        if m.bias.is_some() {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            // SAFETY: the attribute is a uint32.
            unsafe { result::set_matmul_desc_attribute(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, (&raw const epilogue).cast(), 4)? };
            let kind = data_type(m.output) as i32;
            // SAFETY: the attribute is an int32.
            unsafe { result::set_matmul_desc_attribute(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (&raw const kind).cast(), 4)? };
        }
        // Rows and columns as they lie, transposition not regarded.
        let layout =
            |kind, rows: usize, columns: usize| result::create_matrix_layout(data_type(kind), rows as u64, columns as u64, rows as i64);
        let a = if m.transpose_b { layout(m.inputs, m.k, m.n)? } else { layout(m.inputs, m.n, m.k)? };
        let b = if m.transpose_a { layout(m.inputs, m.m, m.k)? } else { layout(m.inputs, m.k, m.m)? };
        Ok((operation, [a, b, layout(m.output, m.n, m.m)?]))
    };
    describe().map_err(failed)
}

impl Matmul {
    /// Whether cublasLt takes the product's description, or why it cannot be asked. That needs the library, and no GPU.
    pub fn describe(&self) -> Result<()> {
        crate::libraries::open();
        // SAFETY: opens a library of NVIDIA's.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::None { reason: "libcublasLt was not found".into() });
        }
        describe(self).map(|plan| destroy(plan.0, plan.1))
    }
}

fn destroy(operation: sys::cublasLtMatmulDesc_t, layouts: [sys::cublasLtMatrixLayout_t; 3]) {
    // SAFETY: made by `describe`, destroyed once; a launched product has its own copy.
    unsafe {
        let _ = result::destroy_matmul_desc(operation);
        for layout in layouts {
            let _ = result::destroy_matrix_layout(layout);
        }
    }
}

impl Matmuls {
    pub fn new(workspace: Pointer, workspace_bytes: usize) -> Result<Matmuls> {
        let handle = result::create_handle().map_err(Error::cuda("cublasLtCreate"))?;
        Ok(Matmuls { handle, workspace, workspace_bytes, plans: HashMap::new() })
    }

    fn plan(&self, m: &Matmul, key: &Key) -> Result<Plan> {
        let (operation, layouts) = describe(m)?;
        let choose = || -> std::result::Result<_, result::CublasError> {
            let preference = result::create_matmul_pref()?;
            use sys::cublasLtMatmulPreferenceAttributes_t::*;
            let set = |attribute, value: *const c_void, bytes| {
                // SAFETY: the sizes are those of the attributes.
                unsafe { result::set_matmul_pref_attribute(preference, attribute, value, bytes) }
            };
            set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const self.workspace_bytes).cast(), 8)?;
            let [a, b, c, d] = key.alignments;
            for (attribute, bytes) in [
                (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
                (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
                (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
                (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
            ] {
                set(attribute, (&raw const bytes).cast(), 4)?;
            }
            let [a, b, c] = layouts;
            // SAFETY: all were created above.
            unsafe {
                let found = result::get_matmul_algo_heuristic(self.handle, operation, a, b, c, c, preference);
                result::destroy_matmul_pref(preference)?;
                found
            }
        };
        let found = choose().map_err(|e| Error::Cuda { what: "cublasLtMatmulAlgoGetHeuristic", reason: format!("{e:?} for {m:?}") })?;
        Ok(Plan { operation, layouts, algorithm: found.algo })
    }

    pub fn run(&mut self, m: &Matmul, stream: cudarc::driver::sys::CUstream) -> Result<()> {
        let key = Key::of(m);
        if !self.plans.contains_key(&key) {
            if self.plans.len() == PLANS {
                self.clear();
            }
            let plan = self.plan(m, &key)?;
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&Key::of(m)];
        let failed = |e: result::CublasError| Error::Cuda { what: "cublasLtMatmul", reason: format!("{e:?} for {m:?}") };
        if let Some(bias) = m.bias {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            // SAFETY: the attribute is an address.
            unsafe { result::set_matmul_desc_attribute(plan.operation, attribute, (&raw const bias).cast(), 8) }.map_err(failed)?;
        }
        let (alpha, beta) = (1f32, if m.add.is_some() { 1f32 } else { 0.0 });
        let [a, b, c] = plan.layouts;
        let address = |at: Pointer| at as *const c_void;
        // SAFETY: the addresses are of matrices of these layouts, as `Device`'s callers see to.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                address(m.b),
                a,
                address(m.a),
                b,
                address(m.add.unwrap_or(m.out)),
                c,
                m.out as *mut c_void,
                c,
                &plan.algorithm,
                self.workspace as *mut c_void,
                self.workspace_bytes,
                stream.cast(),
            )
        }
        .map_err(failed)
    }

    fn clear(&mut self) {
        for (_, plan) in self.plans.drain() {
            destroy(plan.operation, plan.layouts);
        }
    }

    /// Gives back what cublasLt holds, while the context is still there.
    pub fn forget(&mut self) {
        self.clear();
        // SAFETY: destroyed once: `Cuda` is being dropped.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
