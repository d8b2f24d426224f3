use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::DataType;
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use super::SECTION;

/// `word_count(text)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct WordCount {
    signature: Signature,
}

impl Default for WordCount {
    fn default() -> Self {
        WordCount { signature: Signature::string(1, Volatility::Immutable) }
    }
}

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "How many words a text has: runs of characters between Unicode white space, as Python's `len(text.split())`.",
        "word_count(text)",
    )
    .with_argument("text", "A text.")
    .with_sql_example("SELECT count(*) FROM pool WHERE word_count(text) > 2")
    .build()
});

/// White space as Python's `str.split()` has it: Unicode's, and the four separators U+001C to U+001F.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn count(text: &str) -> i64 {
    text.split(is_space).filter(|word| !word.is_empty()).count() as i64
}

impl ScalarUDFImpl for WordCount {
    fn name(&self) -> &str {
        "word_count"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [text] = take_function_args(self.name(), &args.args)?;
        let text = text.to_array(args.number_rows)?;
        let counts: Int64Array = match text.data_type() {
            DataType::Utf8 => text.as_string::<i32>().iter().map(|t| t.map(count)).collect(),
            DataType::LargeUtf8 => text.as_string::<i64>().iter().map(|t| t.map(count)).collect(),
            DataType::Utf8View => text.as_string_view().iter().map(|t| t.map(count)).collect(),
            other => return exec_err!("word_count takes text, got {other}"),
        };
        Ok(ColumnarValue::Array(Arc::new(counts) as ArrayRef))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn counts_as_python_splits() {
        for (text, words) in [("", 0), ("  \n", 0), ("a", 1), (" a  b\u{a0}c\u{2003}d ", 4), ("a\u{1c}b", 2), ("a\u{200b}b", 1)] {
            assert_eq!(count(text), words, "{text:?}");
        }
    }
}
