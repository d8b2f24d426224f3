//! Which uids are in a table already.

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use futures::TryStreamExt;
use lance::Dataset;

use crate::pool::uids_of;
use crate::uid::UidMap;
use crate::{Error, Result, Uid};

/// Calls `found` with every row of the table whose uid is a key of `wanted`, and its address.
/// Memory is that of a batch, whatever the table's size.
pub(super) async fn find<T>(dataset: &Dataset, wanted: &UidMap<T>, mut found: impl FnMut(Uid, u64)) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    // Most rows are not wanted: one bit of 2^24 tells, in the second cache.
    let mut maybe = vec![0u64; 1 << 18];
    let bit = |uid: Uid| (uid.halves().0 ^ uid.halves().1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    for &uid in wanted.keys() {
        maybe[(bit(uid) >> 6) as usize] |= 1 << (bit(uid) & 63);
    }
    let wrap = || Error::lance(dataset.uri());
    let mut scanner = dataset.scan();
    scanner.project(&["uid"]).map_err(wrap())?.with_row_address().scan_in_order(false);
    let mut stream = scanner.try_into_stream().await.map_err(wrap())?;
    while let Some(batch) = stream.try_next().await.map_err(wrap())? {
        let addresses = batch.column(1).as_primitive::<UInt64Type>().values();
        for (uid, &address) in uids_of(batch.column(0).as_ref()).zip(addresses) {
            if maybe[(bit(uid) >> 6) as usize] & (1 << (bit(uid) & 63)) != 0 && wanted.contains_key(&uid) {
                found(uid, address);
            }
        }
    }
    Ok(())
}
