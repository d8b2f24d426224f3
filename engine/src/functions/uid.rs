use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryBuilder, StringArray};
use arrow::datatypes::DataType;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, ScalarUDF, Signature, Volatility};
use storage::Uid;

use super::external;
use super::function::{About, Function};

/// `uid(expr)`.
pub(crate) fn uid_call(expr: Expr) -> Expr {
    static UID: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(of_text()));
    Expr::ScalarFunction(ScalarFunction::new_udf(UID.clone(), vec![expr]))
}

/// Conversions between uids and their texts.
pub(super) fn functions() -> [ScalarUDF; 2] {
    [of_text(), to_text()]
}

fn of_text() -> ScalarUDF {
    let about = About {
        syntax: "uid(text)",
        description: "The uid with this text. Comparisons of a uid with text do it by themselves.",
        arguments: &[("text", "32 hexadecimal digits.")],
        example: "SELECT text FROM pool WHERE uid = uid('51f492b1c9a539c791dc0ea14b054b69')",
    };
    Function::of_text("uid", about, DataType::FixedSizeBinary(16), |texts| {
        let mut uids = FixedSizeBinaryBuilder::with_capacity(texts.len(), 16);
        for text in texts {
            match text {
                Some(text) => uids.append_value(text.parse::<Uid>().map_err(external)?.0)?,
                None => uids.append_null(),
            }
        }
        Ok(Arc::new(uids.finish()) as ArrayRef)
    })
}

fn to_text() -> ScalarUDF {
    let about = About {
        syntax: "uid_text(uid)",
        description: "A uid's text: 32 hexadecimal digits in lower case.",
        arguments: &[("uid", "A uid.")],
        example: "SELECT uid_text(uid) FROM pool LIMIT 3",
    };
    let signature = Signature::exact(vec![DataType::FixedSizeBinary(16)], Volatility::Immutable);
    Function::udf("uid_text", about, signature, DataType::Utf8, |args| {
        let uids = args.arrays[0].as_fixed_size_binary();
        let text = |uid: &[u8]| Uid(uid.try_into().expect("uids are 16 bytes wide")).to_string();
        let texts: StringArray = (0..uids.len()).map(|i| uids.is_valid(i).then(|| text(uids.value(i)))).collect();
        Ok(Arc::new(texts) as ArrayRef)
    })
}
