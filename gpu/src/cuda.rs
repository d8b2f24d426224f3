//! A GPU through CUDA's driver. Work is put on one stream; what is copied beside it, on another.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::time::Duration;

use cudarc::driver::{result, sys};

use crate::device::{Driver, Info, Launch, Matmul, Pointer};
use crate::matmul::Matmuls;
use crate::nccl::Communicator;
use crate::{Error, Result, libraries, nvrtc};

/// Bytes of a piece of pinned memory that copies to the device go through, and pieces: of the stream that computes, and of the
/// one beside it, on which a micro-batch's pixels are copied while the last one computes.
const PIECE: usize = 16 << 20;
const PIECES: usize = 2;
const PIECES_BESIDE: usize = 8;
/// Bytes of a copy into a piece that are worth a thread.
const COPY: usize = 2 << 20;

/// What GPU `ordinal` is, or why it cannot be used.
pub fn probe(ordinal: usize) -> Result<Info> {
    let (device, _, info) = enter(ordinal)?;
    // SAFETY: `enter` has retained it.
    unsafe { result::primary_ctx::release(device) }.map_err(Error::cuda("cuDevicePrimaryCtxRelease"))?;
    Ok(info)
}

/// Looks whether all is there that a GPU needs, and makes its context this thread's; it is to be released.
fn enter(ordinal: usize) -> Result<(sys::CUdevice, sys::CUcontext, Info)> {
    let none = |reason: String| Error::None { reason };
    libraries::open();
    // SAFETY: opens NVIDIA's driver.
    if !unsafe { sys::is_culib_present() } {
        return Err(none("the system's loader finds no libcuda, NVIDIA's driver".into()));
    }
    result::init().map_err(|e| none(format!("the driver does not start: {e:?}")))?;
    let count = result::device::get_count().map_err(|e| none(format!("the driver does not count them: {e:?}")))?;
    match count {
        0 => return Err(none("the driver sees none".into())),
        count if ordinal >= count as usize => {
            return Err(none(format!("there is no number {ordinal}: the driver sees {count}, counted from 0")));
        }
        _ => {}
    }
    // SAFETY: opens a library of NVIDIA's.
    if !unsafe { cudarc::cublaslt::sys::is_culib_present() } {
        let reason = "libcublasLt was not found: it comes with the CUDA toolkit, and with `pip install nvidia-cublas`";
        return Err(none(reason.into()));
    }
    if !nvrtc::present() {
        let reason = "libnvrtc was not found: it comes with the CUDA toolkit, and with `pip install nvidia-cuda-nvrtc`";
        return Err(none(reason.into()));
    }
    let mut driver = 0;
    // SAFETY: writes an integer.
    unsafe { sys::cuDriverGetVersion(&mut driver) }.result().map_err(Error::cuda("cuDriverGetVersion"))?;
    let compiler = nvrtc::version()?;
    if driver / 1000 < compiler.0 {
        let reason = format!(
            "the driver is of CUDA {}.{}, and libnvrtc of {}.{}: expected a driver as new, or a library as old",
            driver / 1000,
            driver % 1000 / 10,
            compiler.0,
            compiler.1
        );
        return Err(none(reason));
    }
    let device = result::device::get(ordinal as i32).map_err(Error::cuda("cuDeviceGet"))?;
    let attribute = |attribute| {
        // SAFETY: the device is the driver's.
        unsafe { result::device::get_attribute(device, attribute) }.map_err(Error::cuda("cuDeviceGetAttribute"))
    };
    use sys::CUdevice_attribute_enum::*;
    let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let name = result::device::get_name(device).map_err(Error::cuda("cuDeviceGetName"))?;
    if major < 8 {
        return Err(none(format!("the {name} has compute capability {major}.{minor}, expected 8.0 or more (bfloat16)")));
    }
    // SAFETY: the device is the driver's; the context is released by the caller.
    let context = unsafe { result::primary_ctx::retain(device) }.map_err(Error::cuda("cuDevicePrimaryCtxRetain"))?;
    // SAFETY: the context was retained just now.
    unsafe { result::ctx::set_current(context) }.map_err(Error::cuda("cuCtxSetCurrent"))?;
    let (free, memory) = result::mem_get_info().map_err(Error::cuda("cuMemGetInfo"))?;
    let info = Info {
        name,
        capability: (major as u32, minor as u32),
        memory,
        free,
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        shared: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
    };
    Ok((device, context, info))
}

pub struct Cuda {
    info: Info,
    context: sys::CUcontext,
    device: sys::CUdevice,
    stream: sys::CUstream,
    /// For `write_beside`.
    beside: sys::CUstream,
    stages: [Stage; 2],
    /// When what lies at an address was last needed, and when it was last written from beside.
    used: HashMap<Pointer, sys::CUevent>,
    written: sys::CUevent,
    buffers: Vec<Pointer>,
    modules: Vec<sys::CUmodule>,
    kernels: HashMap<String, sys::CUfunction>,
    matmuls: Matmuls,
    marks: Vec<sys::CUevent>,
    communicator: Option<Communicator>,
}

// SAFETY: the driver's handles may be used from any thread, and `enter` makes the context that thread's.
unsafe impl Send for Cuda {}

/// Pinned memory that copies of a stream read from while the program goes on.
struct Stage {
    stream: sys::CUstream,
    pieces: Vec<Piece>,
    /// The piece that is being filled, and the bytes in it.
    piece: usize,
    filled: usize,
}

struct Piece {
    at: *mut u8,
    /// When the copies from it are done.
    done: sys::CUevent,
}

impl Stage {
    fn new(stream: sys::CUstream, pieces: usize) -> Result<Stage> {
        let piece = || -> Result<Piece> {
            // SAFETY: freed when `Cuda` is dropped.
            let at = unsafe { result::malloc_host(PIECE, 0) }.map_err(Error::cuda("cuMemHostAlloc"))?;
            Ok(Piece { at: at.cast(), done: event(false)? })
        };
        Ok(Stage { stream, pieces: (0..pieces).map(|_| piece()).collect::<Result<_>>()?, piece: 0, filled: 0 })
    }

    /// Copies to the device, part by part.
    fn copy(&mut self, to: Pointer, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            if self.filled == PIECE {
                self.next()?;
            }
            let n = (bytes.len() - done).min(PIECE - self.filled);
            // SAFETY: the piece has `PIECE` bytes, and no copy from this part of it is under way: `next` has waited.
            let staged = unsafe { std::slice::from_raw_parts_mut(self.pieces[self.piece].at.add(self.filled), n) };
            copy(staged, &bytes[done..done + n]);
            // SAFETY: the destination is a part of one of our buffers; the piece stays until its event has passed.
            unsafe { result::memcpy_htod_async(to + done as u64, staged, self.stream) }.map_err(Error::cuda("cuMemcpyHtoDAsync"))?;
            done += n;
            // Parts begin where 16 bytes do.
            self.filled = (self.filled + n).next_multiple_of(16);
        }
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        // SAFETY: stream and events are ours; an event that was never recorded has passed.
        unsafe {
            result::event::record(self.pieces[self.piece].done, self.stream).map_err(Error::cuda("cuEventRecord"))?;
            self.piece = (self.piece + 1) % self.pieces.len();
            self.filled = 0;
            result::event::synchronize(self.pieces[self.piece].done).map_err(Error::cuda("cuEventSynchronize"))
        }
    }
}

type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;

fn event(timed: bool) -> Result<sys::CUevent> {
    let flags = if timed { sys::CUevent_flags::CU_EVENT_DEFAULT } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING };
    result::event::create(flags).map_err(Error::cuda("cuEventCreate"))
}

impl Cuda {
    pub fn open(ordinal: usize) -> Result<Cuda> {
        let (device, context, info) = enter(ordinal)?;
        let stream = || result::stream::create(result::stream::StreamKind::NonBlocking).map_err(Error::cuda("cuStreamCreate"));
        let workspace = if info.capability.0 >= 9 { 32 << 20 } else { 4 << 20 };
        // SAFETY: a plain allocation, freed with the others.
        let workspace_at = unsafe { result::malloc_sync(workspace) }.map_err(Error::cuda("cuMemAlloc"))?;
        let (stream, beside) = (stream()?, stream()?);
        Ok(Cuda {
            info,
            context,
            device,
            stream,
            beside,
            stages: [Stage::new(stream, PIECES)?, Stage::new(beside, PIECES_BESIDE)?],
            used: HashMap::new(),
            written: event(false)?,
            buffers: vec![workspace_at],
            modules: Vec::new(),
            kernels: HashMap::new(),
            matmuls: Matmuls::new(workspace_at, workspace)?,
            marks: Vec::new(),
            communicator: None,
        })
    }

    /// Makes the context this thread's.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(Error::cuda("cuCtxSetCurrent"))
    }
}

/// On several threads where it is large. Not rayon's: whoever waits for those may be given other work, which then waits for the
/// GPU that this work has.
fn copy(to: &mut [u8], from: &[u8]) {
    let threads = (from.len() / COPY).max(1);
    let each = from.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let mut parts = to.chunks_mut(each).zip(from.chunks(each));
        let own = parts.next();
        parts.for_each(|(to, from)| drop(scope.spawn(|| to.copy_from_slice(from))));
        own.into_iter().for_each(|(to, from)| to.copy_from_slice(from));
    });
}

impl Driver for Cuda {
    fn info(&self) -> &Info {
        &self.info
    }

    fn alloc(&mut self, bytes: usize) -> Result<Pointer> {
        self.enter()?;
        // SAFETY: freed when `self` is dropped.
        let allocated = unsafe { result::malloc_sync(bytes) };
        let at = allocated.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = result::mem_get_info().unwrap_or_default();
                Error::Memory { bytes, free, total }
            }
            _ => Error::cuda("cuMemAlloc")(e),
        })?;
        self.buffers.push(at);
        self.zero(at, bytes)?;
        Ok(at)
    }

    fn free(&mut self, at: Pointer) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the stream is ours.
        unsafe { result::stream::synchronize(self.beside) }.map_err(Error::cuda("cuStreamSynchronize"))?;
        self.buffers.retain(|buffer| *buffer != at);
        if let Some(used) = self.used.remove(&at) {
            // SAFETY: ours, and not used again.
            let _ = unsafe { result::event::destroy(used) };
        }
        // SAFETY: nothing that uses it is under way.
        unsafe { result::free_sync(at) }.map_err(Error::cuda("cuMemFree"))
    }

    fn zero(&mut self, at: Pointer, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: within one of our buffers, as `Device`'s callers see to.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream) }.map_err(Error::cuda("cuMemsetD8Async"))
    }

    fn write(&mut self, to: Pointer, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        self.stages[0].copy(to, bytes)
    }

    fn write_beside(&mut self, to: Pointer, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        // New memory is being zeroed in the order of the work.
        if !self.used.contains_key(&to) {
            self.used(to)?;
        }
        // SAFETY: stream and event are ours.
        unsafe { result::stream::wait_event(self.beside, self.used[&to], sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
            .map_err(Error::cuda("cuStreamWaitEvent"))?;
        self.stages[1].copy(to, bytes)?;
        // SAFETY: as above.
        unsafe {
            result::event::record(self.written, self.beside).map_err(Error::cuda("cuEventRecord"))?;
            result::stream::wait_event(self.stream, self.written, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
                .map_err(Error::cuda("cuStreamWaitEvent"))
        }
    }

    fn used(&mut self, at: Pointer) -> Result<()> {
        self.enter()?;
        let event = match self.used.get(&at) {
            Some(&event) => event,
            None => *self.used.entry(at).or_insert(event(false)?),
        };
        // SAFETY: stream and event are ours.
        unsafe { result::event::record(event, self.stream) }.map_err(Error::cuda("cuEventRecord"))
    }

    fn read(&mut self, from: Pointer, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the source is within one of our buffers; the copy is over before `bytes` is given back.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) }.map_err(Error::cuda("cuMemcpyDtoHAsync"))?;
        self.synchronize()
    }

    fn load(&mut self, source: &str) -> Result<()> {
        self.enter()?;
        let image = nvrtc::compile(source, self.info.capability)?;
        // SAFETY: the image is what NVRTC made.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(Error::cuda("cuModuleLoadData"))?;
        self.modules.push(module);
        for name in crate::emulated::kernel_names(source) {
            let c_name = CString::new(name.as_str()).map_err(|_| Error::Kernel { name: name.clone() })?;
            // SAFETY: the module was loaded just now.
            let kernel = unsafe { result::module::get_function(module, c_name) }.map_err(|_| Error::Kernel { name: name.clone() })?;
            self.kernels.insert(name, kernel);
        }
        Ok(())
    }

    fn launch(&mut self, kernel: &str, launch: Launch, args: &mut [*mut c_void]) -> Result<()> {
        self.enter()?;
        let function = *self.kernels.get(kernel).ok_or_else(|| Error::Kernel { name: kernel.into() })?;
        if launch.shared > 48 << 10 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of one of our modules.
            unsafe { result::function::set_function_attribute(function, attribute, launch.shared as i32) }
                .map_err(Error::cuda("cuFuncSetAttribute"))?;
        }
        let (grid, block) = ((launch.grid.0, launch.grid.1, 1), (launch.threads, 1, 1));
        // SAFETY: the arguments are the kernel's, in their order, as the callers of `Device::launch` see to.
        unsafe { result::launch_kernel(function, grid, block, launch.shared, self.stream, args) }
            .map_err(|e| Error::Cuda { what: "cuLaunchKernel", reason: format!("{kernel} {launch:?}: {e:?}") })
    }

    fn matmul(&mut self, matmul: &Matmul) -> Result<()> {
        self.enter()?;
        self.matmuls.run(matmul, self.stream)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.enter()?;
        if let Some(communicator) = &mut self.communicator {
            // Another process may go away while it is waited for.
            // SAFETY: event and stream are ours.
            unsafe { result::event::record(self.written, self.stream) }.map_err(Error::cuda("cuEventRecord"))?;
            // SAFETY: as above.
            while unsafe { result::event::query(self.written) }.is_err_and(|e| e.0 == sys::CUresult::CUDA_ERROR_NOT_READY) {
                communicator.check()?;
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        // SAFETY: the stream is ours.
        unsafe { result::stream::synchronize(self.stream) }.map_err(Error::cuda("cuStreamSynchronize"))
    }

    fn mark(&mut self) -> Result<usize> {
        self.enter()?;
        let mark = event(true)?;
        // SAFETY: both are ours.
        unsafe { result::event::record(mark, self.stream) }.map_err(Error::cuda("cuEventRecord"))?;
        self.marks.push(mark);
        Ok(self.marks.len() - 1)
    }

    fn elapsed(&mut self, marks: &[(usize, usize)]) -> Result<Vec<Duration>> {
        self.synchronize()?;
        // SAFETY: the type is cuda.h's. The first form of the function, which every driver has.
        let function = unsafe { sys::culib().get::<Elapsed>(b"cuEventElapsedTime") }.map_err(Error::cuda("cuEventElapsedTime"))?;
        let elapsed = |&(from, to): &(usize, usize)| {
            let mut milliseconds = 0f32;
            // SAFETY: both were recorded on our stream, and have passed.
            let status = unsafe { function(&mut milliseconds, self.marks[from], self.marks[to]) };
            status.result().map_err(Error::cuda("cuEventElapsedTime"))?;
            Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
        };
        let elapsed = marks.iter().map(elapsed).collect();
        for mark in self.marks.drain(..) {
            // SAFETY: ours, and not used again.
            let _ = unsafe { result::event::destroy(mark) };
        }
        elapsed
    }

    fn meeting_point(&mut self) -> Result<Option<Vec<u8>>> {
        Communicator::meeting_point()
    }

    fn meet(&mut self, at: &[u8], rank: usize, world: usize) -> Result<()> {
        self.enter()?;
        self.communicator = Some(Communicator::meet(at, rank, world)?);
        Ok(())
    }

    fn all_gather(&mut self, at: Pointer, values: usize) -> Result<()> {
        self.enter()?;
        let stream = self.stream.cast();
        self.communicator.as_mut().map_or(Ok(()), |communicator| communicator.all_gather(at, values, stream))
    }

    fn all_reduce(&mut self, at: Pointer, values: usize) -> Result<()> {
        self.enter()?;
        let stream = self.stream.cast();
        self.communicator.as_mut().map_or(Ok(()), |communicator| communicator.all_reduce(at, values, stream))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        // SAFETY: all of it is ours and given back once; nothing is under way any more.
        unsafe {
            if let Some(mut communicator) = self.communicator.take()
                && communicator.check().is_err()
            {
                // Or its part of the stream's work would be waited for.
                communicator.abort();
            }
            let _ = result::stream::synchronize(self.stream);
            let _ = result::stream::synchronize(self.beside);
            self.matmuls.forget();
            for at in self.buffers.drain(..) {
                let _ = result::free_sync(at);
            }
            let events = self.used.drain().map(|(_, event)| event).chain(self.marks.drain(..)).chain([self.written]);
            for event in events {
                let _ = result::event::destroy(event);
            }
            for piece in self.stages.iter().flat_map(|stage| &stage.pieces) {
                let _ = result::event::destroy(piece.done);
                let _ = result::free_host(piece.at.cast());
            }
            for module in self.modules.drain(..) {
                let _ = result::module::unload(module);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::stream::destroy(self.beside);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
