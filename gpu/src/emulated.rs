//! No GPU: kernels as the machine's C++ compiler makes them of the same source, with `emulator.h` for CUDA's part of the
//! language. What a kernel computes shows here, and barriers that not all threads reach; speed and races do not.

use std::collections::HashMap;
use std::ffi::c_void;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use half::{bf16, f16};
use libloading::Library;

use crate::device::{Driver, Info, Kind, Launch, Matmul, Pointer};
use crate::{Error, Result, cache};

const EMULATOR: &str = include_str!("emulator.h");
/// Blocks that a task of a launch runs.
const BLOCKS: u32 = 4;

type Run = unsafe extern "C" fn(u32, u32, u32, u32, *mut *mut c_void, u32, u32, bool) -> bool;

pub struct Emulated {
    info: Info,
    compiler: String,
    libraries: Vec<Library>,
    kernels: HashMap<String, Run>,
    /// Kernels whose threads meet at barriers.
    barriers: HashMap<String, bool>,
    buffers: Vec<Vec<u64>>,
    marks: Vec<Instant>,
}

/// The kernels that a source defines: `extern "C" __global__ void NAME(` at the beginning of a line, or a macro
/// `KERNEL_...(NAME, ...)`.
pub fn kernel_names(source: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let rest = match line.strip_prefix("extern \"C\" __global__ void ") {
            Some(rest) => rest,
            None => line.strip_prefix("KERNEL_")?.split_once('(')?.1,
        };
        rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().map(str::to_string)
    };
    source.lines().filter_map(of_line).collect()
}

impl Emulated {
    pub fn open() -> Result<Emulated> {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let version = Command::new(&compiler).arg("--version").output();
        let version = version.map_err(|e| Error::Compiler { compiler: compiler.clone(), reason: e.to_string() })?;
        let info =
            Info { name: "emulated GPU".into(), capability: (0, 0), memory: 8 << 30, free: 8 << 30, multiprocessors: 2, shared: 99 << 10 };
        let compiler = format!("{compiler}\n{}", String::from_utf8_lossy(&version.stdout));
        Ok(Emulated {
            info,
            compiler,
            libraries: Vec::new(),
            kernels: HashMap::new(),
            barriers: HashMap::new(),
            buffers: Vec::new(),
            marks: Vec::new(),
        })
    }
}

impl Driver for Emulated {
    fn info(&self) -> &Info {
        &self.info
    }

    fn alloc(&mut self, bytes: usize) -> Result<Pointer> {
        // What lies beyond a buffer is noise, so that reading it shows.
        let mut buffer = vec![0u64; bytes.div_ceil(8) + 32];
        let words = bytes.div_ceil(8);
        buffer[words + 16..].fill(u64::MAX);
        let at = (buffer.as_ptr() as u64).next_multiple_of(128);
        self.buffers.push(buffer);
        Ok(at)
    }

    fn free(&mut self, at: Pointer) -> Result<()> {
        self.buffers.retain(|buffer| !(buffer.as_ptr() as u64..=buffer.as_ptr() as u64 + 128).contains(&at));
        Ok(())
    }

    fn zero(&mut self, at: Pointer, bytes: usize) -> Result<()> {
        // SAFETY: within one of our buffers, as `Device`'s callers see to.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    fn write(&mut self, to: Pointer, bytes: &[u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn write_beside(&mut self, to: Pointer, bytes: &[u8]) -> Result<()> {
        self.write(to, bytes)
    }

    fn used(&mut self, _: Pointer) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, from: Pointer, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn load(&mut self, source: &str) -> Result<()> {
        let names = kernel_names(source);
        let mut whole = format!("{EMULATOR}\n{source}\n");
        for name in &names {
            whole += &format!(
                "extern \"C\" bool run_{name}(unsigned gx, unsigned gy, unsigned threads, unsigned shared, void** arguments, \
                 unsigned first, unsigned last, bool barriers) {{ \
                 return emulator::run({name}, {{gx, gy}}, threads, shared, arguments, first, last, barriers); }}\n"
            );
        }
        let (program, _) = self.compiler.split_once('\n').unwrap_or((&self.compiler, ""));
        let path = cache::file(&[&whole, &self.compiler], "so", |path| {
            let source = path.with_extension("cpp");
            std::fs::write(&source, &whole).map_err(|e| Error::File { path: source.clone(), reason: e.to_string() })?;
            let made = Command::new(program)
                .args(["-std=c++17", "-O2", "-w", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-pthread", "-o"])
                .args([path, &source])
                .output();
            let _ = std::fs::remove_file(&source);
            let failed = |log: String| Error::Compile { compiler: program.to_string(), log };
            let made = made.map_err(|e| failed(e.to_string()))?;
            if made.status.success() { Ok(()) } else { Err(failed(String::from_utf8_lossy(&made.stderr).into_owned())) }
        })?;
        // SAFETY: a library that was made just now, or before of the same source.
        let library = unsafe { Library::new(&path) }.map_err(|e| {
            // A file that is broken is made again the next time.
            let _ = std::fs::remove_file(&path);
            Error::File { path: path.clone(), reason: format!("{e}; it is removed, try again") }
        })?;
        for name in names {
            // SAFETY: the functions have this type: they are written above.
            let run = unsafe { library.get::<Run>(format!("run_{name}").as_bytes()) };
            let run = *run.map_err(|_| Error::Kernel { name: name.clone() })?;
            self.kernels.insert(name, run);
        }
        self.libraries.push(library);
        Ok(())
    }

    fn launch(&mut self, kernel: &str, launch: Launch, args: &mut [*mut c_void]) -> Result<()> {
        let run = *self.kernels.get(kernel).ok_or_else(|| Error::Kernel { name: kernel.into() })?;
        let (x, y) = launch.grid;
        let blocks = x * y;
        let args = args.as_mut_ptr() as usize;
        // SAFETY: the arguments are the kernel's, in their order, as the callers of `Device::launch` see to.
        let go =
            |first: u32, last: u32, barriers| unsafe { run(x, y, launch.threads, launch.shared, args as *mut _, first, last, barriers) };
        let known = self.barriers.get(kernel).copied();
        let barriers = match known {
            Some(barriers) => barriers,
            None => {
                let barriers = go(0, 1, true);
                self.barriers.insert(kernel.into(), barriers);
                barriers
            }
        };
        let first = if known.is_some() { 0 } else { 1 };
        let next = AtomicU32::new(first);
        let work = || loop {
            let block = next.fetch_add(BLOCKS, Ordering::Relaxed);
            if block >= blocks {
                return;
            }
            go(block, (block + BLOCKS).min(blocks), barriers);
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min((blocks - first).div_ceil(BLOCKS) as usize);
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        Ok(())
    }

    fn matmul(&mut self, m: &Matmul) -> Result<()> {
        let read = |at: Pointer, n: usize, kind: Kind| -> Vec<f32> {
            // SAFETY: `n` values of a kind lie in one of our buffers, as `Device`'s callers see to.
            unsafe {
                match kind {
                    Kind::F32 => std::slice::from_raw_parts(at as *const f32, n).to_vec(),
                    Kind::Bf16 => std::slice::from_raw_parts(at as *const bf16, n).iter().map(|x| x.to_f32()).collect(),
                    Kind::F16 => std::slice::from_raw_parts(at as *const f16, n).iter().map(|x| x.to_f32()).collect(),
                }
            }
        };
        let (a, b) = (read(m.a, m.m * m.k, m.inputs), read(m.b, m.k * m.n, m.inputs));
        let mut out = m.add.map_or_else(|| vec![0.0; m.m * m.n], |add| read(add, m.m * m.n, m.output));
        let strides = |transpose, rows: usize, columns: usize| if transpose { (rows as isize, 1) } else { (1, columns as isize) };
        let ((ac, ar), (bc, br)) = (strides(m.transpose_a, m.m, m.k), strides(m.transpose_b, m.k, m.n));
        // SAFETY: the strides are those of matrices of these shapes.
        unsafe {
            let (to, one) = (out.as_mut_ptr(), 1.0);
            let parallelism = gemm::Parallelism::None;
            gemm::gemm(
                m.m,
                m.n,
                m.k,
                to,
                1,
                m.n as isize,
                true,
                a.as_ptr(),
                ac,
                ar,
                b.as_ptr(),
                bc,
                br,
                one,
                one,
                false,
                false,
                false,
                parallelism,
            );
        }
        if let Some(bias) = m.bias {
            let bias = read(bias, m.n, m.output);
            out.chunks_exact_mut(m.n).for_each(|row| row.iter_mut().zip(&bias).for_each(|(x, bias)| *x += bias));
        }
        // SAFETY: as above.
        unsafe {
            match m.output {
                Kind::F32 => std::slice::from_raw_parts_mut(m.out as *mut f32, out.len()).copy_from_slice(&out),
                Kind::Bf16 => {
                    let to = std::slice::from_raw_parts_mut(m.out as *mut bf16, out.len());
                    to.iter_mut().zip(&out).for_each(|(to, &x)| *to = bf16::from_f32(x));
                }
                Kind::F16 => {
                    let to = std::slice::from_raw_parts_mut(m.out as *mut f16, out.len());
                    to.iter_mut().zip(&out).for_each(|(to, &x)| *to = f16::from_f32(x));
                }
            }
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn mark(&mut self) -> Result<usize> {
        self.marks.push(Instant::now());
        Ok(self.marks.len() - 1)
    }

    fn elapsed(&mut self, marks: &[(usize, usize)]) -> Result<Vec<Duration>> {
        let elapsed = marks.iter().map(|&(from, to)| self.marks[to] - self.marks[from]).collect();
        self.marks.clear();
        Ok(elapsed)
    }

    fn meeting_point(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn meet(&mut self, _: &[u8], _: usize, _: usize) -> Result<()> {
        Err(Error::None { reason: "emulated GPUs do not meet".into() })
    }

    fn all_gather(&mut self, _: Pointer, _: usize) -> Result<()> {
        Err(Error::None { reason: "emulated GPUs do not meet".into() })
    }

    fn all_reduce(&mut self, _: Pointer, _: usize) -> Result<()> {
        Err(Error::None { reason: "emulated GPUs do not meet".into() })
    }
}
