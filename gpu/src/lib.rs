//! One GPU: memory, kernels compiled at run time, matrix products, and exchange with other processes' GPUs.
//! Knows no model and no SQL: it is given kernels' source.

mod cache;
mod cuda;
mod device;
mod emulated;
mod error;
mod libraries;
mod matmul;
mod nccl;
mod nvrtc;

pub use cuda::probe;
pub use device::{Arg, Device, Info, Kind, Launch, Matmul, Pointer, Timing, bytes_of};
pub use error::{Error, Result};
pub use nvrtc::{compile, present as nvrtc_present};

/// What a source of kernels begins with: sums over warps and blocks, and what differs where they are emulated.
pub const PRELUDE: &str = include_str!("prelude.cuh");

/// A folder for compiled kernels other than the user's cache.
pub const CACHE_VARIABLE: &str = "TARN_CACHE";
