use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Float32 values that begin as zeros, in huge pages where the system has them: a model's buffers are gigabytes, and a
/// page fault for every 4 KB of them took longer than the step that they are for.
#[derive(Default)]
pub struct Memory {
    map: Option<MmapMut>,
    len: usize,
}

impl Memory {
    /// Ends the program where there is no memory, as a `Vec` would.
    pub fn zeros(len: usize) -> Memory {
        if len == 0 {
            return Memory::default();
        }
        let layout = std::alloc::Layout::array::<f32>(len).expect("no more than the address space");
        let map = MmapMut::map_anon(layout.size()).unwrap_or_else(|_| std::alloc::handle_alloc_error(layout));
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Memory { map: Some(map), len }
    }
}

impl Deref for Memory {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let Some(map) = &self.map else { return &[] };
        // SAFETY: the mapping is at least `len` float32 long, begins at a page, and is initialised with zeros.
        unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [f32] {
        let Some(map) = &mut self.map else { return &mut [] };
        // SAFETY: as above, and the mapping is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), self.len) }
    }
}
