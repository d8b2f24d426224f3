//! Settings of glibc's allocator; nothing elsewhere.

/// One arena a core, not eight: each keeps what the many short-lived buffers of a long ingest leave, and the sum grew
/// with the pool (12.8 M rows: 580 MB, so 380 MB).
pub(crate) fn few_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // SAFETY: mallopt takes plain numbers and may be called at any time.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, cores as libc::c_int) };
    }
}

/// Besides, memory that is freed is used again rather than given back and asked for anew: a scan's buffers come and go,
/// and the system clears each page that it hands out (clip_score over 12.8 M rows: 0.66 s, so 0.61 s).
pub(crate) fn keep_memory() {
    few_arenas();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
    }
}
