//! Exchange between GPUs of several processes, by NCCL.

use std::ffi::c_char;

use cudarc::nccl::{result, sys};

use crate::device::Pointer;
use crate::{Error, Result, libraries};

pub struct Communicator {
    communicator: sys::ncclComm_t,
    rank: usize,
}

const FLOAT: sys::ncclDataType_t = sys::ncclDataType_t::ncclFloat32;

impl Communicator {
    /// None where the library is not.
    pub fn meeting_point() -> Result<Option<Vec<u8>>> {
        libraries::open();
        // SAFETY: opens a library of NVIDIA's.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let id = result::get_uniqueid().map_err(Error::cuda("ncclGetUniqueId"))?;
        Ok(Some(id.internal.iter().map(|&byte| byte as u8).collect()))
    }

    /// The GPU is that of the thread's context.
    pub fn meet(at: &[u8], rank: usize, world: usize) -> Result<Communicator> {
        let mut id = sys::ncclUniqueId { internal: [0; 128] };
        id.internal.iter_mut().zip(at).for_each(|(to, &from)| *to = from as c_char);
        let mut communicator = std::ptr::null_mut();
        // SAFETY: the id is what `meeting_point` gave the first process.
        unsafe { result::comm_init_rank(&mut communicator, world as i32, id, rank as i32) }.map_err(Error::cuda("ncclCommInitRank"))?;
        Ok(Communicator { communicator, rank })
    }

    pub fn all_gather(&self, at: Pointer, values: usize, stream: sys::cudaStream_t) -> Result<()> {
        let own = at + (4 * self.rank * values) as u64;
        // SAFETY: in place, as NCCL has it: what is sent lies where it is received.
        unsafe { result::all_gather(own as *const _, at as *mut _, values, FLOAT, self.communicator, stream) }
            .map(|_| ())
            .map_err(Error::cuda("ncclAllGather"))
    }

    pub fn all_reduce(&self, at: Pointer, values: usize, stream: sys::cudaStream_t) -> Result<()> {
        let sum = sys::ncclRedOp_t::ncclSum;
        // SAFETY: in place.
        unsafe { result::all_reduce(at as *const _, at as *mut _, values, FLOAT, sum, self.communicator, stream) }
            .map(|_| ())
            .map_err(Error::cuda("ncclAllReduce"))
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again. Abort and not destroy, which would wait for processes that are gone.
        let _ = unsafe { result::comm_abort(self.communicator) };
    }
}
