//! Sorting uids by radix: they are hashes, so that their leading bytes split them evenly. Loops go by index and without
//! closures, since the crate is compiled for a short build.

use super::Entry;

/// Slices of at most so many are sorted by insertion.
const SMALL: usize = 24;
/// Slices of at least so many are split on two threads.
const LARGE: usize = 1 << 16;

/// Sorts by uid, then by weight. `spare` is room for as many entries.
pub(super) fn sort<E: Entry>(entries: &mut [E], spare: &mut Vec<E>) {
    spare.clear();
    spare.resize(entries.len(), E::default());
    by_byte(entries, spare, 0);
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
    if n >= LARGE {
        // Halves of the buckets side by side.
        let middle = starts[128];
        let (low, high) = entries.split_at_mut(middle);
        let (spare_low, spare_high) = spare.split_at_mut(middle);
        rayon::join(
            || buckets(low, spare_low, &starts[..128], &ends[..128], 0, depth),
            || buckets(high, spare_high, &starts[128..], &ends[128..], middle, depth),
        );
    } else {
        buckets(entries, spare, &starts, &ends, 0, depth);
    }
}

fn buckets<E: Entry>(entries: &mut [E], spare: &mut [E], starts: &[usize], ends: &[usize], before: usize, depth: u32) {
    let mut i = 0;
    while i < starts.len() {
        let (from, to) = (starts[i] - before, ends[i] - before);
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
