use std::sync::{Arc, LazyLock};

use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::utils::take_function_args;
use datafusion::logical_expr::{ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use datafusion::scalar::ScalarValue;

use super::{SECTION, external};

/// `cosine_similarity(a, b)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct CosineSimilarity {
    signature: Signature,
}

impl Default for CosineSimilarity {
    fn default() -> Self {
        CosineSimilarity { signature: Signature::any(2, Volatility::Immutable) }
    }
}

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "The cosine of the angle between two vectors, as a REAL. Vectors are embedding columns or lists of numbers of the same length. NULL where either is NULL, NaN where either is all zeros.",
        "cosine_similarity(a, b)",
    )
    .with_argument("a", "A vector: float16 or float32 columns are read in place.")
    .with_argument("b", "A vector of the same length.")
    .with_sql_example("SELECT uid, cosine_similarity(l14_img, l14_txt) AS score FROM pool ORDER BY score DESC LIMIT 10")
    .build()
});

impl ScalarUDFImpl for CosineSimilarity {
    fn name(&self) -> &str {
        "cosine_similarity"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float32)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [a, b] = take_function_args(self.name(), &args.args)?;
        let array = |value: &ColumnarValue| match value {
            ColumnarValue::Array(array) => Ok(array.clone()),
            ColumnarValue::Scalar(scalar) => scalar.to_array_of_size(1),
        };
        let constant = matches!((a, b), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let result = index::cosine_similarity(&array(a)?, &array(b)?, rows).map_err(external)?;
        Ok(match constant {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?),
            false => ColumnarValue::Array(Arc::new(result)),
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}
