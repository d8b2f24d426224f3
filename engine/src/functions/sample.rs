use std::sync::{Arc, LazyLock};

use arrow::array::{Array, AsArray, Float64Array};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::Result;
use datafusion::common::utils::take_function_args;
use datafusion::logical_expr::{ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use twox_hash::XxHash64;

use super::SECTION;

/// `sample_hash(uid, seed)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct SampleHash {
    signature: Signature,
}

impl Default for SampleHash {
    fn default() -> Self {
        let types = vec![DataType::FixedSizeBinary(16), DataType::Int64];
        SampleHash { signature: Signature::exact(types, Volatility::Immutable) }
    }
}

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "A number in [0, 1) that depends on the uid and the seed alone and is the same for ever: the upper 53 bits of XXH64 over the uid's bytes. `sample_hash(uid, 1) < 0.1` is a random tenth of the pool.",
        "sample_hash(uid, seed)",
    )
    .with_argument("uid", "A uid.")
    .with_argument("seed", "An integer; other seeds give independent numbers.")
    .with_sql_example("SELECT uid FROM pool WHERE sample_hash(uid, 0) < 0.1")
    .build()
});

fn sample_hash(uid: &[u8], seed: i64) -> f64 {
    (XxHash64::oneshot(seed as u64, uid) >> 11) as f64 / (1u64 << 53) as f64
}

impl ScalarUDFImpl for SampleHash {
    fn name(&self) -> &str {
        "sample_hash"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [uid, seed] = take_function_args(self.name(), &args.args)?;
        let (uid, seed) = (uid.to_array(args.number_rows)?, seed.to_array(args.number_rows)?);
        let seeds = seed.as_primitive::<Int64Type>();
        let hashes = uid.as_fixed_size_binary().iter().zip(seeds.iter()).map(|(uid, seed)| Some(sample_hash(uid?, seed?)));
        Ok(ColumnarValue::Array(Arc::new(hashes.collect::<Float64Array>()) as Arc<dyn Array>))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

#[cfg(test)]
mod tests {
    use super::sample_hash;

    #[test]
    fn is_stable() {
        // python: (xxhash.xxh64(bytes(range(16)), seed=s).intdigest() >> 11) / 2**53
        let uid: Vec<u8> = (0..16).collect();
        assert_eq!(sample_hash(&uid, 0), HASH_0);
        assert_eq!(sample_hash(&uid, 7), HASH_7);
    }

    const HASH_0: f64 = 0.26841635623009596;
    const HASH_7: f64 = 0.31417805517971487;
}
