//! Which uids a group of files brings, and which of them are in a table already.

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use futures::TryStreamExt;
use lance::Dataset;
use rayon::slice::ParallelSliceMut;

use crate::{Error, Result, Uid};

/// The file of a group, and the row or sample of it.
pub(super) type Place = (u32, u32);

/// The uids of a group, each with the first place where it occurs: 24 bytes a uid, and 1 MB of bits that tell most
/// uids that are not there.
pub(super) struct Uids {
    /// Ascending, as numbers.
    uids: Vec<u128>,
    places: Vec<Place>,
    /// Where the uids begin that have these 16 bits first.
    starts: Vec<u32>,
    maybe: Vec<u64>,
}

impl Uids {
    /// Of all uids in a group, and the places where one occurs again.
    pub fn new(mut all: Vec<(Uid, Place)>) -> (Uids, Vec<(Uid, Place)>) {
        all.par_sort_unstable_by_key(|(uid, place)| (number(*uid), *place));
        let (mut again, mut starts, mut maybe) = (Vec::new(), vec![0u32; (1 << 16) + 1], vec![0u64; 1 << 17]);
        let (mut uids, mut places): (Vec<u128>, Vec<Place>) = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
        for (uid, place) in all {
            let uid_number = number(uid);
            if uids.last() == Some(&uid_number) {
                again.push((uid, place));
                continue;
            }
            uids.push(uid_number);
            places.push(place);
            starts[(uid_number >> 112) as usize + 1] += 1;
            maybe[bit(uid_number) >> 6] |= 1 << (bit(uid_number) & 63);
        }
        for i in 0..1 << 16 {
            starts[i + 1] += starts[i];
        }
        (Uids { uids, places, starts, maybe }, again)
    }

    pub fn get(&self, uid: Uid) -> Option<Place> {
        let uid = number(uid);
        if self.may_have(uid) { self.search(uid) } else { None }
    }

    // What follows is hot, and the crate is compiled for a short build: hence by index, and told to inline.

    #[inline(always)]
    fn may_have(&self, uid: u128) -> bool {
        let bit = bit(uid);
        self.maybe[bit >> 6] & (1 << (bit & 63)) != 0
    }

    fn search(&self, uid: u128) -> Option<Place> {
        let first = (uid >> 112) as usize;
        let (mut low, mut high) = (self.starts[first] as usize, self.starts[first + 1] as usize);
        while low < high {
            let middle = (low + high) / 2;
            if self.uids[middle] < uid {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        match self.uids.get(low) {
            Some(found) if *found == uid => Some(self.places[low]),
            _ => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Uid, Place)> + '_ {
        self.uids.iter().zip(&self.places).map(|(uid, place)| (Uid(uid.to_be_bytes()), *place))
    }

    /// Calls `found` with every row of the table whose uid is one of these: its place here and its address there.
    /// Memory is that of some batches, whatever the table's size.
    pub async fn find(&self, dataset: &Dataset, mut found: impl FnMut(Uid, Place, u64)) -> Result<()> {
        if self.uids.is_empty() {
            return Ok(());
        }
        let wrap = || Error::lance(dataset.uri());
        let mut scanner = dataset.scan();
        scanner.project(&["uid"]).map_err(wrap())?.with_row_address().scan_in_order(false);
        // The default reads up to 2 GiB ahead of who takes the batches.
        scanner.io_buffer_size(16 << 20).batch_readahead(2).fragment_readahead(1);
        let mut stream = scanner.try_into_stream().await.map_err(wrap())?;
        while let Some(batch) = stream.try_next().await.map_err(wrap())? {
            let addresses = batch.column(1).as_primitive::<UInt64Type>().values();
            let uids = batch.column(0).as_fixed_size_binary();
            let bytes = &uids.value_data()[uids.value_offset(0) as usize..];
            for (i, &address) in addresses.iter().enumerate() {
                let mut uid = [0; 16];
                uid.copy_from_slice(&bytes[i * 16..i * 16 + 16]);
                let number = u128::from_be_bytes(uid);
                if self.may_have(number)
                    && let Some(place) = self.search(number)
                {
                    found(Uid(uid), place, address);
                }
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn number(uid: Uid) -> u128 {
    u128::from_be_bytes(uid.0)
}

/// One of 2^23.
#[inline(always)]
fn bit(uid: u128) -> usize {
    (((uid >> 64) as u64 ^ uid as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 41) as usize
}
