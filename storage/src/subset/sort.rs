//! Sorting uids by radix: they are hashes, so that their leading bytes split them evenly. Loops go by index and without
//! closures, since the crate is compiled for a short build.

use super::Entry;

/// Slices of at most so many are sorted by insertion.
const SMALL: usize = 24;

/// Sorts entries whose first byte is the same by uid, then by weight. `spare` is room that is used again.
pub(super) fn sort<E: Entry>(entries: &mut [E], spare: &mut Vec<E>) {
    if spare.len() < entries.len() {
        spare.resize(entries.len(), E::default());
    }
    by_byte(entries, &mut spare[..entries.len()], 1);
}

fn by_byte<E: Entry>(entries: &mut [E], spare: &mut [E], depth: u32) {
    let n = entries.len();
    if n <= SMALL {
        return by_insertion(entries);
    }
    if depth == E::BYTES {
        return; // all the same
    }
    let mut ends = [0usize; 256];
    let mut i = 0;
    while i < n {
        ends[entries[i].byte(depth) as usize] += 1;
        i += 1;
    }
    let mut sum = 0;
    let mut starts = [0usize; 256];
    i = 0;
    while i < 256 {
        starts[i] = sum;
        sum += ends[i];
        ends[i] = sum;
        i += 1;
    }
    let mut at = starts;
    i = 0;
    while i < n {
        let byte = entries[i].byte(depth) as usize;
        spare[at[byte]] = entries[i];
        at[byte] += 1;
        i += 1;
    }
    entries.copy_from_slice(spare);
    i = 0;
    while i < 256 {
        let (from, to) = (starts[i], ends[i]);
        if to - from > 1 {
            by_byte(&mut entries[from..to], &mut spare[from..to], depth + 1);
        }
        i += 1;
    }
}

fn by_insertion<E: Entry>(entries: &mut [E]) {
    let mut i = 1;
    while i < entries.len() {
        let entry = entries[i];
        let mut j = i;
        while j > 0 && entry.is_less(&entries[j - 1]) {
            entries[j] = entries[j - 1];
            j -= 1;
        }
        entries[j] = entry;
        i += 1;
    }
}
