//! Functions that tarn puts into queries itself; people do not call them.

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::function::texts;

/// `tarn_found(value, what)`: the value, or an error that names what was looked for where it is NULL.
pub(crate) const FOUND: &str = "tarn_found";
/// `tarn_one_of(value, filter, parameter, choice...)`: the value, or an error where it is none of the choices.
pub(crate) const ONE_OF: &str = "tarn_one_of";

pub(super) fn functions() -> [ScalarUDF; 2] {
    [FOUND, ONE_OF].map(|name| ScalarUDF::from(Checked { name, signature: Signature::variadic_any(Volatility::Immutable) }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types[0].clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(args.arg_fields[0].clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let words = args.args[1..].iter().map(|arg| Ok(texts(&arg.to_array(1)?)?.value(0).to_string())).collect::<Result<Vec<_>>>()?;
        let value: ArrayRef = match &args.args[0] {
            ColumnarValue::Array(array) => array.clone(),
            ColumnarValue::Scalar(scalar) => scalar.to_array_of_size(1)?,
        };
        if self.name == FOUND {
            if value.null_count() > 0 {
                return exec_err!("embedding: the pool has no vector for {}", words[0]);
            }
        } else {
            let (values, choices) = (texts(&value)?, &words[2..]);
            if let Some(wrong) = values.iter().flatten().find(|value| !choices.iter().any(|choice| choice == value)) {
                let (filter, parameter) = (&words[0], &words[1]);
                return exec_err!("parameter '{parameter}' of filter '{filter}' must be one of {}, got '{wrong}'", choices.join(", "));
            }
        }
        Ok(args.args[0].clone())
    }
}
