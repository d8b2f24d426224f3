//! The GPU's kernels: compiled by NVRTC, and beside the CPU's backend, on a GPU where there is one and on the processor by its
//! C++ compiler.

use std::process::Command;

use train::backend::{Backend, Cuda, Precision, check_operations, kernel_source};
use train::selftest::{Pairs, losses, small_model};
use train::{Device, Tokenizer, image};

use crate::search::{pool, rows, search};
use crate::{Sandbox, source};

type GpuTest = (&'static str, fn(&Sandbox), fn() -> bool);

/// Each with whether what it needs is here.
pub const TESTS: &[GpuTest] = &[
    ("kernels_compile_with_nvrtc", compile, gpu::nvrtc_present),
    ("cublaslt_takes_every_description", descriptions, cublaslt),
    ("emulated_kernels_are_the_cpus_in_float32", |_| check(emulated(), Precision::Fp32), compiler),
    ("emulated_kernels_are_the_cpus_in_bfloat16", |_| check(emulated(), Precision::Bf16), compiler),
    ("cuda_is_called_as_it_asks", called_as_it_asks, compiler),
    ("processes_on_emulated_gpus_train_as_one", crate::group::devices, compiler),
    ("searches_on_an_emulated_gpu_are_the_cpus", |_| searches("emulated"), compiler),
    ("on_a_gpu_searches_are_the_cpus", |_| searches("cuda:0"), gpu),
    ("an_emulated_gpu_trains_as_the_cpu", |_| train_as_the_cpu(Device::Emulated, 6), compiler),
    ("on_a_gpu_training_is_the_cpus", |_| train_as_the_cpu(|precision| Device::Cuda(0, precision), if fake() { 3 } else { 50 }), gpu),
    #[cfg(feature = "libtorch")]
    ("libtorch_is_the_cpu", |_| compare(&mut train::backend::Libtorch::new(Precision::Fp32), false), || true),
    ("on_a_gpu_kernels_are_the_cpus_in_float32", |_| check(gpu::Device::cuda(0).unwrap(), Precision::Fp32), gpu),
    ("on_a_gpu_kernels_are_the_cpus_in_bfloat16", |_| check(gpu::Device::cuda(0).unwrap(), Precision::Bf16), gpu),
];

const PRECISIONS: [Precision; 2] = [Precision::Bf16, Precision::Fp32];

fn gpu() -> bool {
    gpu::probe(0).is_ok()
}

/// The GPU is that of `called_as_it_asks`.
fn fake() -> bool {
    gpu::probe(0).is_ok_and(|info| info.name == "fake GPU")
}

fn compiler() -> bool {
    gpu::Device::emulated().is_ok()
}

fn emulated() -> gpu::Device {
    gpu::Device::emulated().unwrap()
}

fn product(inputs: gpu::Kind, output: gpu::Kind, transpose_a: bool, transpose_b: bool, bias: Option<u64>) -> gpu::Matmul {
    gpu::Matmul { out: 256, a: 512, b: 1024, m: 24, n: 16, k: 8, transpose_a, transpose_b, inputs, output, add: None, bias }
}

fn cublaslt() -> bool {
    product(gpu::Kind::F32, gpu::Kind::F32, false, false, None).describe().is_ok()
}

/// The tests that want a GPU, with libraries in the place of NVIDIA's that check how they are called, and put work off or do it
/// early (`tests/cuda/fake.cpp`).
fn called_as_it_asks(t: &Sandbox) {
    t.write("fake.cpp", include_str!("../cuda/fake.cpp"));
    t.write("emulator.h", include_str!("../../gpu/src/emulator.h"));
    std::fs::create_dir(t.path("lib")).unwrap();
    let library = t.path("lib/libcuda.so");
    let made = Command::new("c++").args(["-std=c++17", "-O2", "-shared", "-fPIC", "-o"]).args([&library, &t.path("fake.cpp")]).status();
    assert!(made.unwrap().success());
    for name in ["libnvrtc.so", "libcublasLt.so"] {
        std::os::unix::fs::symlink("libcuda.so", t.path("lib").join(name)).unwrap();
    }
    for order in ["late", "beside"] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["on_a_gpu", "--test-threads", "1"])
            .envs([("LD_LIBRARY_PATH", t.path("lib")), ("TARN_CACHE", t.path("cache")), ("FAKE_CUDA_EMULATOR", t.path("emulator.h"))])
            .env("FAKE_CUDA", order)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("test result: ok. 4 passed"), "{order}: {text}");
    }
}

/// A100, L4, H100 and B200.
fn compile(_: &Sandbox) {
    for precision in PRECISIONS {
        for capability in [(8, 0), (8, 9), (9, 0), (10, 0)] {
            let image = gpu::compile(&kernel_source(precision), capability).unwrap_or_else(|e| panic!("{e}"));
            assert!(image.starts_with(b"\x7fELF"), "{capability:?}: no machine code");
            gpu::compile(&index::kernel_source(), capability).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

fn descriptions(_: &Sandbox) {
    use gpu::Kind::{Bf16, F16, F32};
    for (inputs, output) in [(Bf16, Bf16), (Bf16, F32), (F32, F32), (F16, F32)] {
        for (transpose_a, transpose_b, bias) in [(false, true, Some(0)), (true, false, None), (false, false, None)] {
            product(inputs, output, transpose_a, transpose_b, bias).describe().unwrap();
        }
    }
}

fn check(device: gpu::Device, precision: Precision) {
    let mut cuda = Cuda::new(device, precision).unwrap_or_else(|e| panic!("{e}"));
    compare(&mut cuda, precision == Precision::Bf16);
}

fn compare(backend: &mut dyn Backend, rounds: bool) {
    let checks = check_operations(backend, rounds);
    backend.check().unwrap_or_else(|e| panic!("{e}"));
    let wrong: Vec<String> = checks.iter().filter(|check| !check.passes()).map(|check| format!("{check:?}")).collect();
    assert!(checks.len() > 60 && wrong.is_empty(), "of {} results these are wrong:\n{}", checks.len(), wrong.join("\n"));
}

fn train_as_the_cpu(device: impl Fn(Precision) -> Device, steps: usize) {
    let (tokenizer, model) = (Tokenizer::default(), small_model(48));
    let decode = |i: usize| image::resize_center_crop(&image::decode(&source::picture(i)).unwrap(), 48).unwrap();
    let captions = ["a red ball", "two dogs on a beach, one of them asleep", "photo", "an old map of the city with its harbour"];
    let caption = |i: usize| tokenizer.encode(&format!("{} {i}", captions[i % 4]), 77);
    let pairs = Pairs { pixels: (0..12).flat_map(decode).collect(), captions: (0..12).map(caption).collect() };
    let run = |device| losses(device, &model, &pairs, 6, steps).unwrap_or_else(|e| panic!("{e}"));
    let cpu = run(None);
    for (precision, allowed) in [(Precision::Fp32, 1e-3), (Precision::Bf16, 3e-2)] {
        let got = run(Some(device(precision)));
        let near = got.iter().zip(&cpu).all(|(a, b)| (a - b).abs() <= allowed * b.abs().max(0.1));
        assert!(got.len() == steps && near, "{precision:?}: losses {got:?}, on the CPU {cpu:?}");
    }
}

/// A kNN join by each metric, with and without conditions, and k-means.
fn searches(device: &str) {
    let on = |device| {
        let t = Sandbox::with_environment([("TARN_DEVICE", device)]);
        pool(&t);
        let mut found = Vec::new();
        for column in ["clip_a", "clip_b"] {
            for metric in ["cosine", "l2", "dot"] {
                for condition in ["", "WHERE n.original_width < 206"] {
                    found.push(search(&t, column, &format!(", metric => '{metric}', exact => true"), condition));
                }
            }
        }
        t.ok(&["vectors", "pool", "kmeans", "a", "--column", "clip_b", "-k", "12", "--samples", "2000", "--iterations", "4"]);
        found.push(rows(&t, "SELECT id, vector FROM vectors WHERE name = 'a' ORDER BY id"));
        found
    };
    for (got, expected) in on(device).into_iter().zip(on("cpu")) {
        assert_eq!(got, expected);
    }
}
