use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};
use twox_hash::XxHash64;

use super::function::{About, Arguments, Function};

/// `sample_hash(uid, seed)`.
pub(super) fn function() -> ScalarUDF {
    let about = About {
        syntax: "sample_hash(uid, seed)",
        description: "A number in [0, 1) that depends on the uid and the seed alone and is the same for ever: the upper 53 bits of XXH64 over the uid's bytes. `sample_hash(uid, 1) < 0.1` is a random tenth of the pool.",
        arguments: &[("uid", "A uid."), ("seed", "An integer; other seeds give independent numbers.")],
        example: "SELECT uid FROM pool WHERE sample_hash(uid, 0) < 0.1",
    };
    let signature = Signature::exact(vec![DataType::FixedSizeBinary(16), DataType::Int64], Volatility::Immutable);
    Function::udf("sample_hash", about, signature, DataType::Float64, |args| Ok(Arc::new(hashes(args)) as ArrayRef))
}

fn hashes(args: &Arguments) -> Float64Array {
    let (uids, seeds) = (args.arrays[0].as_fixed_size_binary(), args.arrays[1].as_primitive::<Int64Type>());
    let at = |len: usize, i: usize| if len == 1 { 0 } else { i };
    let hash = |i: usize| {
        use arrow::array::Array;
        let (uid, seed) = (at(uids.len(), i), at(seeds.len(), i));
        (uids.is_valid(uid) && seeds.is_valid(seed)).then(|| sample_hash(uids.value(uid), seeds.value(seed)))
    };
    (0..args.rows).map(hash).collect()
}

fn sample_hash(uid: &[u8], seed: i64) -> f64 {
    (XxHash64::oneshot(seed as u64, uid) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::sample_hash;

    #[test]
    fn is_stable() {
        // python: (xxhash.xxh64(bytes(range(16)), seed=s).intdigest() >> 11) / 2**53
        let uid: Vec<u8> = (0..16).collect();
        assert_eq!(sample_hash(&uid, 0), 0.26841635623009596);
        assert_eq!(sample_hash(&uid, 7), 0.31417805517971487);
    }
}
