use ::gpu::{Device, Pointer};

/// Numbers that kernels look things up by. The same are asked for by every layer of a micro-batch: what was uploaded lately
/// is not uploaded again.
#[derive(Default)]
pub struct Indices {
    recent: Vec<Uploaded>,
    uploads: u64,
}

struct Uploaded {
    values: Vec<i32>,
    at: Pointer,
    room: usize,
    /// Counted by uploads.
    last_used: u64,
}

/// Uploads that are remembered, many more than one kernel takes.
const RECENT: usize = 24;

impl Indices {
    pub fn upload(&mut self, device: &mut Device, values: &[i32]) -> Pointer {
        self.uploads += 1;
        if let Some(uploaded) = self.recent.iter_mut().find(|uploaded| uploaded.values == values) {
            uploaded.last_used = self.uploads;
            return uploaded.at;
        }
        if self.recent.len() < RECENT {
            self.recent.push(Uploaded { values: Vec::new(), at: 0, room: 0, last_used: 0 });
        }
        let uploaded = self.recent.iter_mut().min_by_key(|uploaded| uploaded.last_used).expect("one was pushed at least");
        uploaded.last_used = self.uploads;
        if values.len() > uploaded.room {
            if uploaded.room > 0 {
                device.free(uploaded.at);
            }
            uploaded.room = 2 * values.len();
            uploaded.at = device.alloc(4 * uploaded.room);
        }
        uploaded.values.clear();
        uploaded.values.extend_from_slice(values);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        // In the order of the work: kernels that read what was there before have run by then.
        device.write(uploaded.at, &bytes);
        uploaded.at
    }
}

/// Rows sorted by their keys, in pieces of one key each.
pub struct Pieces {
    pub order: Vec<i32>,
    /// Piece p has the rows `order[bounds[p]..bounds[p + 1]]`.
    pub bounds: Vec<i32>,
    /// The keys that there are, key k having the pieces `key_bounds[k]..key_bounds[k + 1]`.
    pub keys: Vec<i32>,
    pub key_bounds: Vec<i32>,
}

/// Rows that one block adds, so that no block has much more to do than others: some tokens are in every caption.
const PIECE: usize = 64;

pub fn pieces(keys: &[u32]) -> Pieces {
    let mut order: Vec<u64> = keys.iter().enumerate().map(|(row, &key)| u64::from(key) << 32 | row as u64).collect();
    order.sort_unstable();
    let key = |at: usize| (order[at] >> 32) as i32;
    let mut pieces =
        Pieces { order: order.iter().map(|&x| x as u32 as i32).collect(), bounds: vec![0], keys: Vec::new(), key_bounds: vec![0] };
    let mut start = 0;
    for end in 1..=order.len() {
        let ends_key = end == order.len() || key(end) != key(start);
        if ends_key || end - start == PIECE {
            pieces.bounds.push(end as i32);
            if ends_key {
                pieces.keys.push(key(start));
                pieces.key_bounds.push(pieces.bounds.len() as i32 - 1);
            }
            start = end;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_one_key() {
        let mut keys = vec![7; 130];
        keys.extend([3, 9, 3]);
        let pieces = pieces(&keys);
        assert_eq!(pieces.keys, [3, 7, 9]);
        assert_eq!(pieces.bounds, [0, 2, 66, 130, 132, 133]);
        assert_eq!(pieces.key_bounds, [0, 1, 4, 5]);
        assert_eq!(pieces.order[..3], [130, 132, 0]);
    }
}
