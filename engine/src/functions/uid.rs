use std::sync::{Arc, LazyLock};

use arrow::array::{Array, AsArray, FixedSizeBinaryBuilder, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::utils::take_function_args;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{ColumnarValue, Documentation, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::scalar::ScalarValue;
use storage::Uid;

use super::{SECTION, external};

/// `uid('hex')`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct UidOf {
    signature: Signature,
}

/// `uid_text(uid)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct UidTextOf {
    signature: Signature,
}

impl Default for UidOf {
    fn default() -> Self {
        UidOf { signature: Signature::string(1, Volatility::Immutable) }
    }
}

impl Default for UidTextOf {
    fn default() -> Self {
        UidTextOf { signature: Signature::exact(vec![DataType::FixedSizeBinary(16)], Volatility::Immutable) }
    }
}

/// `uid(expr)`.
pub(crate) fn uid_call(expr: Expr) -> Expr {
    static UID: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(ScalarUDF::from(UidOf::default())));
    Expr::ScalarFunction(ScalarFunction::new_udf(UID.clone(), vec![expr]))
}

static UID_DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(SECTION, "The uid with this text. Comparisons of a uid with text do it by themselves.", "uid(text)")
        .with_argument("text", "32 hexadecimal digits.")
        .with_sql_example("SELECT text FROM pool WHERE uid = uid('51f492b1c9a539c791dc0ea14b054b69')")
        .build()
});

static UID_TEXT_DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(SECTION, "A uid's text: 32 hexadecimal digits in lower case.", "uid_text(uid)")
        .with_argument("uid", "A uid.")
        .with_sql_example("SELECT uid_text(uid) FROM pool LIMIT 3")
        .build()
});

impl ScalarUDFImpl for UidOf {
    fn name(&self) -> &str {
        "uid"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::FixedSizeBinary(16))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [text] = take_function_args(self.name(), &args.args)?;
        let constant = matches!(text, ColumnarValue::Scalar(_));
        let text = cast(&text.to_array(if constant { 1 } else { args.number_rows })?, &DataType::Utf8)?;
        let mut uids = FixedSizeBinaryBuilder::with_capacity(text.len(), 16);
        for text in text.as_string::<i32>() {
            match text {
                Some(text) => uids.append_value(text.parse::<Uid>().map_err(external)?.0)?,
                None => uids.append_null(),
            }
        }
        let uids = uids.finish();
        Ok(match constant {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&uids, 0)?),
            false => ColumnarValue::Array(Arc::new(uids)),
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&UID_DOCUMENTATION)
    }
}

impl ScalarUDFImpl for UidTextOf {
    fn name(&self) -> &str {
        "uid_text"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [uid] = take_function_args(self.name(), &args.args)?;
        let uid = uid.to_array(args.number_rows)?;
        let text = |uid: &[u8]| Uid(uid.try_into().expect("uids are 16 bytes wide")).to_string();
        let texts: StringArray = uid.as_fixed_size_binary().iter().map(|uid| uid.map(text)).collect();
        Ok(ColumnarValue::Array(Arc::new(texts)))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&UID_TEXT_DOCUMENTATION)
    }
}
