//! Kernels from source to a GPU's instructions, by NVIDIA's run-time compiler.

use std::ffi::CString;

use cudarc::nvrtc::{result, sys};

use crate::{Error, Result, cache, libraries};

/// Whether the library is here.
pub fn present() -> bool {
    libraries::open();
    // SAFETY: opens a library of NVIDIA's.
    unsafe { sys::is_culib_present() }
}

/// Major and minor, where the library is present.
pub fn version() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(Error::cuda("nvrtcVersion"))?;
    Ok((major, minor))
}

/// Instructions for GPUs of a compute capability, as `cuModuleLoadData` takes them; from the user's cache where the
/// same was compiled before. Needs no GPU.
pub fn compile(source: &str, capability: (u32, u32)) -> Result<Vec<u8>> {
    if !present() {
        let reason = "libnvrtc was not found: it comes with the CUDA toolkit, and with `pip install nvidia-cuda-nvrtc`";
        return Err(Error::None { reason: reason.into() });
    }
    let (major, minor) = version()?;
    let compiler = format!("nvrtc {major}.{minor}");
    let architecture = format!("--gpu-architecture=sm_{}{}", capability.0, capability.1);
    let path = cache::file(&[source, &architecture, &compiler], "cubin", |path| {
        let image = translate(source, &architecture, &compiler)?;
        std::fs::write(path, image).map_err(|e| Error::File { path: path.to_path_buf(), reason: e.to_string() })
    })?;
    std::fs::read(&path).map_err(|e| Error::File { path, reason: e.to_string() })
}

fn translate(source: &str, architecture: &str, compiler: &str) -> Result<Vec<u8>> {
    let failed = |log: String| Error::Compile { compiler: format!("{compiler} {architecture}"), log };
    let source = CString::new(source).map_err(|e| failed(e.to_string()))?;
    let program = result::create_program(&source, Some(c"kernels.cu")).map_err(|e| failed(e.to_string()))?;
    let options = [architecture, "--std=c++17", "--fmad=true", "-default-device"];
    // SAFETY: the program was created above, and is destroyed once, below.
    let image = unsafe {
        result::compile_program(program, &options)
            .map_err(|e| {
                let log = result::get_program_log(program).unwrap_or_default();
                let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
                failed(format!("{e}\n{}", String::from_utf8_lossy(&log)))
            })
            .and_then(|()| {
                let mut size = 0;
                sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(Error::cuda("nvrtcGetCUBINSize"))?;
                let mut image = vec![0u8; size];
                sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().map_err(Error::cuda("nvrtcGetCUBIN"))?;
                Ok(image)
            })
    };
    // SAFETY: as above.
    let _ = unsafe { result::destroy_program(program) };
    image
}
