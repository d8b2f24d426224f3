//! Exchange between GPUs of several processes, by NCCL. Its functions are looked up here: the library is mostly there as
//! `libnccl.so.2` alone, which cudarc does not try.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::device::Pointer;
use crate::{Error, Result, libraries};

type Handle = *mut c_void;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Id([u8; 128]);

/// `ncclFloat32`, `ncclSum`, `ncclInProgress`.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;
const IN_PROGRESS: c_int = 7;

struct Functions {
    get_unique_id: unsafe extern "C" fn(*mut Id) -> c_int,
    init_rank: unsafe extern "C" fn(*mut Handle, c_int, Id, c_int) -> c_int,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, Handle) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int,
    async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
}

/// None where the library is not.
fn functions() -> Option<&'static Functions> {
    static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
    let find = |library: &Library| -> std::result::Result<Functions, libloading::Error> {
        // SAFETY: the types are those of nccl.h, which has had them since NCCL 2.4. The library stays open.
        unsafe {
            Ok(Functions {
                get_unique_id: *library.get(b"ncclGetUniqueId")?,
                init_rank: *library.get(b"ncclCommInitRank")?,
                all_gather: *library.get(b"ncclAllGather")?,
                all_reduce: *library.get(b"ncclAllReduce")?,
                async_error: *library.get(b"ncclCommGetAsyncError")?,
                destroy: *library.get(b"ncclCommDestroy")?,
                abort: *library.get(b"ncclCommAbort")?,
            })
        }
    };
    FUNCTIONS.get_or_init(|| libraries::nccl().and_then(|library| find(library).ok())).as_ref()
}

fn done(what: &'static str, status: c_int) -> Result<()> {
    match status {
        0 => Ok(()),
        status => Err(Error::Cuda { what, reason: format!("ncclResult_t {status}; NCCL_DEBUG=INFO says more") }),
    }
}

pub struct Communicator {
    functions: &'static Functions,
    handle: Handle,
    rank: usize,
    failed: bool,
}

impl Communicator {
    /// None where the library is not.
    pub fn meeting_point() -> Result<Option<Vec<u8>>> {
        let Some(functions) = functions() else { return Ok(None) };
        let mut id = Id([0; 128]);
        // SAFETY: writes the id.
        done("ncclGetUniqueId", unsafe { (functions.get_unique_id)(&mut id) })?;
        Ok(Some(id.0.to_vec()))
    }

    /// The GPU is that of the thread's context.
    pub fn meet(at: &[u8], rank: usize, world: usize) -> Result<Communicator> {
        let functions = functions().ok_or(Error::None { reason: "libnccl was not found".into() })?;
        let mut id = Id([0; 128]);
        id.0.iter_mut().zip(at).for_each(|(to, from)| *to = *from);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the id is what `meeting_point` gave the first process.
        done("ncclCommInitRank", unsafe { (functions.init_rank)(&mut handle, world as c_int, id, rank as c_int) })?;
        Ok(Communicator { functions, handle, rank, failed: false })
    }

    pub fn all_gather(&mut self, at: Pointer, values: usize, stream: *mut c_void) -> Result<()> {
        let own = at + (4 * self.rank * values) as u64;
        // SAFETY: in place, as NCCL has it: what is sent lies where it is received.
        let status = unsafe { (self.functions.all_gather)(own as *const _, at as *mut _, values, FLOAT32, self.handle, stream) };
        self.failed |= status != 0;
        done("ncclAllGather", status)
    }

    pub fn all_reduce(&mut self, at: Pointer, values: usize, stream: *mut c_void) -> Result<()> {
        // SAFETY: in place.
        let status = unsafe { (self.functions.all_reduce)(at as *const _, at as *mut _, values, FLOAT32, SUM, self.handle, stream) };
        self.failed |= status != 0;
        done("ncclAllReduce", status)
    }

    /// An error where another process has gone away meanwhile, as far as NCCL sees it.
    pub fn check(&mut self) -> Result<()> {
        let mut status = 0;
        // SAFETY: the communicator is ours.
        done("ncclCommGetAsyncError", unsafe { (self.functions.async_error)(self.handle, &mut status) })?;
        self.failed |= status != 0 && status != IN_PROGRESS;
        if self.failed { done("an exchange by NCCL", status) } else { Ok(()) }
    }

    /// What is under way is given up, and will not be waited for.
    pub fn abort(&mut self) {
        self.failed = true;
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again. Destroying waits for what is under way, which the others may need.
        let _ = unsafe { if self.failed { (self.functions.abort)(self.handle) } else { (self.functions.destroy)(self.handle) } };
    }
}
