use std::ffi::c_void;
use std::time::Duration;

use crate::cuda::Cuda;
use crate::emulated::Emulated;
use crate::{Error, Result};

/// An address in the device's memory.
pub type Pointer = u64;

/// The bytes of numbers, as they lie.
pub fn bytes_of(values: &[f32]) -> &[u8] {
    // SAFETY: every byte of a float32 may be read.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// What a GPU is.
#[derive(Debug, Clone)]
pub struct Info {
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes, and those that nobody had taken when it was looked.
    pub memory: usize,
    pub free: usize,
    pub multiprocessors: usize,
    /// Bytes of shared memory that a block can have.
    pub shared: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    F32,
    Bf16,
    F16,
}

impl Kind {
    pub fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16 | Kind::F16 => 2,
        }
    }
}

/// `out[m, n] = op(a)[m, k] · op(b)[k, n] + add[m, n] + bias[n]`, row-major, summed in float32; `op` transposes where asked.
/// The bias has the output's kind.
#[derive(Debug, Clone, Copy)]
pub struct Matmul {
    pub out: Pointer,
    pub a: Pointer,
    pub b: Pointer,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub transpose_a: bool,
    pub transpose_b: bool,
    pub inputs: Kind,
    pub output: Kind,
    /// May be `out`.
    pub add: Option<Pointer>,
    pub bias: Option<Pointer>,
}

/// How many blocks of how many threads, with how many bytes of shared memory besides what the kernel names.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    pub grid: (u32, u32),
    pub threads: u32,
    pub shared: u32,
}

impl Launch {
    pub fn new(grid: impl TryInto<u32>, threads: u32) -> Launch {
        Launch { grid: (grid.try_into().unwrap_or(u32::MAX).max(1), 1), threads, shared: 0 }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Arg {
    Pointer(Pointer),
    Int(i32),
    Long(i64),
    Float(f32),
}

/// What a device spent on a kernel, or on matrix products of a shape.
#[derive(Debug, Clone)]
pub struct Timing {
    pub name: String,
    pub calls: usize,
    pub total: Duration,
    /// Floating-point operations of all calls, of matrix products.
    pub flops: f64,
}

/// What stands between the calls of a `Device` and a chip, or what is in its place. Calls return before the work is done;
/// it is done in their order.
pub(crate) trait Driver: Send {
    fn info(&self) -> &Info;
    /// Zeros.
    fn alloc(&mut self, bytes: usize) -> Result<Pointer>;
    fn free(&mut self, at: Pointer) -> Result<()>;
    fn zero(&mut self, at: Pointer, bytes: usize) -> Result<()>;
    fn write(&mut self, to: Pointer, bytes: &[u8]) -> Result<()>;
    fn write_beside(&mut self, to: Pointer, bytes: &[u8]) -> Result<()>;
    fn used(&mut self, at: Pointer) -> Result<()>;
    fn read(&mut self, from: Pointer, bytes: &mut [u8]) -> Result<()>;
    fn load(&mut self, source: &str) -> Result<()>;
    fn launch(&mut self, kernel: &str, launch: Launch, args: &mut [*mut c_void]) -> Result<()>;
    fn matmul(&mut self, matmul: &Matmul) -> Result<()>;
    fn synchronize(&mut self) -> Result<()>;
    /// Remembers the time at which the work so far is done.
    fn mark(&mut self) -> Result<usize>;
    /// Between two marks that have passed; forgets all.
    fn elapsed(&mut self, marks: &[(usize, usize)]) -> Result<Vec<Duration>>;
    /// What the first process tells the others, so that they find each other; none without NCCL.
    fn meeting_point(&mut self) -> Result<Option<Vec<u8>>>;
    fn meet(&mut self, at: &[u8], rank: usize, world: usize) -> Result<()>;
    fn all_gather(&mut self, at: Pointer, values: usize) -> Result<()>;
    fn all_reduce(&mut self, at: Pointer, values: usize) -> Result<()>;
}

/// A GPU. The first error stays, is told by `check`, and nothing is done after it.
pub struct Device {
    driver: Box<dyn Driver>,
    failed: Option<Error>,
    flops: f64,
    /// Names, marks before and after, and operations.
    profile: Option<Vec<(String, usize, usize, f64)>>,
}

impl Device {
    /// GPU number `ordinal`, as CUDA counts them.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        Ok(Device::new(Box::new(Cuda::open(ordinal)?)))
    }

    /// No GPU, but the same kernels by the machine's C++ compiler, on the processor: to see what they compute, not how fast.
    pub fn emulated() -> Result<Device> {
        Ok(Device::new(Box::new(Emulated::open()?)))
    }

    fn new(driver: Box<dyn Driver>) -> Device {
        Device { driver, failed: None, flops: 0.0, profile: None }
    }

    pub fn info(&self) -> &Info {
        self.driver.info()
    }

    /// Floating-point operations of matrix products so far: 2 m n k each.
    pub fn flops(&self) -> f64 {
        self.flops
    }

    /// Operations that kernels do besides.
    pub fn count_flops(&mut self, flops: f64) {
        self.flops += flops;
    }

    /// The first error: nothing has been done since.
    pub fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn run<R: Default>(&mut self, f: impl FnOnce(&mut dyn Driver) -> Result<R>) -> R {
        if self.failed.is_some() {
            return R::default();
        }
        f(self.driver.as_mut()).unwrap_or_else(|e| {
            self.failed = Some(e);
            R::default()
        })
    }

    fn timed(&mut self, name: impl FnOnce() -> String, flops: f64, f: impl FnOnce(&mut dyn Driver) -> Result<()>) {
        if self.profile.is_none() {
            return self.run(f);
        }
        let before = self.run(|driver| driver.mark());
        self.run(f);
        let after = self.run(|driver| driver.mark());
        if let Some(profile) = &mut self.profile {
            profile.push((name(), before, after, flops));
        }
    }

    /// Waits for the work so far, and gives memory back.
    pub fn free(&mut self, at: Pointer) {
        self.run(|driver| driver.free(at));
    }

    /// `bytes` zeros.
    pub fn alloc(&mut self, bytes: usize) -> Pointer {
        self.run(|driver| driver.alloc(bytes.max(16)))
    }

    pub fn zero(&mut self, at: Pointer, bytes: usize) {
        self.run(|driver| driver.zero(at, bytes));
    }

    /// The bytes may change after the call.
    pub fn write(&mut self, to: Pointer, bytes: &[u8]) {
        self.run(|driver| driver.write(to, bytes));
    }

    /// The same, while earlier work goes on; it waits only for what came before the last `used(to)`.
    pub fn write_beside(&mut self, to: Pointer, bytes: &[u8]) {
        self.run(|driver| driver.write_beside(to, bytes));
    }

    /// The work so far is the last that needs what `write_beside` has written there.
    pub fn used(&mut self, at: Pointer) {
        self.run(|driver| driver.used(at));
    }

    /// Waits for the work so far.
    pub fn read(&mut self, from: Pointer, bytes: &mut [u8]) {
        self.run(|driver| driver.read(from, bytes));
    }

    /// Compiles kernels, or takes them from the user's cache.
    pub fn load(&mut self, source: &str) -> Result<()> {
        self.driver.load(source)
    }

    pub fn launch(&mut self, kernel: &str, launch: Launch, args: &[Arg]) {
        let mut values: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::Pointer(at) => at,
                Arg::Int(x) => u64::from(x as u32),
                Arg::Long(x) => x as u64,
                Arg::Float(x) => u64::from(x.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        self.timed(|| kernel.to_string(), 0.0, |driver| driver.launch(kernel, launch, &mut pointers));
    }

    pub fn matmul(&mut self, matmul: Matmul) {
        let Matmul { m, n, k, .. } = matmul;
        let flops = 2.0 * (m * n * k) as f64;
        self.flops += flops;
        self.timed(|| format!("matmul {m}x{n}x{k}"), flops, |driver| driver.matmul(&matmul));
    }

    pub fn synchronize(&mut self) {
        self.run(|driver| driver.synchronize());
    }

    /// From here on, what each launch takes.
    pub fn start_profile(&mut self) {
        self.profile = Some(Vec::new());
    }

    /// Since `start_profile`, by name, the longest first.
    pub fn stop_profile(&mut self) -> Vec<Timing> {
        self.synchronize();
        let profile = self.profile.take().unwrap_or_default();
        let marks: Vec<(usize, usize)> = profile.iter().map(|(_, before, after, _)| (*before, *after)).collect();
        let elapsed = self.run(|driver| driver.elapsed(&marks));
        let mut timings: Vec<Timing> = Vec::new();
        for ((name, _, _, flops), time) in profile.into_iter().zip(elapsed) {
            match timings.iter_mut().find(|timing| timing.name == name) {
                Some(timing) => {
                    timing.calls += 1;
                    timing.total += time;
                    timing.flops += flops;
                }
                None => timings.push(Timing { name, calls: 1, total: time, flops }),
            }
        }
        timings.sort_by_key(|timing| std::cmp::Reverse(timing.total));
        timings
    }

    /// What the first process of several tells the others before `meet`; none where they cannot find each other so.
    pub fn meeting_point(&mut self) -> Result<Option<Vec<u8>>> {
        self.driver.meeting_point()
    }

    /// All processes call it at once.
    pub fn meet(&mut self, at: &[u8], rank: usize, world: usize) -> Result<()> {
        self.driver.meet(at, rank, world)
    }

    /// Each process has `values` of float32 at its place in the `[world, values]` at `at`, and gets the others'.
    pub fn all_gather(&mut self, at: Pointer, values: usize) {
        self.run(|driver| driver.all_gather(at, values));
    }

    /// The sums over all processes, of float32.
    pub fn all_reduce(&mut self, at: Pointer, values: usize) {
        self.run(|driver| driver.all_reduce(at, values));
    }
}
