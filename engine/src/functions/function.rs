use std::fmt;
use std::hash::{Hash, Hasher};

use arrow::array::{ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, DocSection, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;

/// Arguments of a call: arrays of `rows` values, constants as arrays of one.
pub(super) struct Arguments {
    pub arrays: Vec<ArrayRef>,
    pub rows: usize,
}

type Kernel = Box<dyn Fn(&Arguments) -> Result<ArrayRef> + Send + Sync>;

/// A scalar function: its name, documentation, types and kernel in one place.
/// Of constants it is evaluated once, and gives a constant.
pub(super) struct Function {
    name: &'static str,
    signature: Signature,
    returns: DataType,
    documentation: Documentation,
    kernel: Kernel,
}

/// What is said of a function: a description, its arguments and an example.
pub(super) struct About {
    pub syntax: &'static str,
    pub description: &'static str,
    pub arguments: &'static [(&'static str, &'static str)],
    pub example: &'static str,
}

pub(super) const SECTION: DocSection = DocSection { include: true, label: "Image-text pools", description: None };

impl About {
    pub fn documentation(self) -> Documentation {
        let with_example = Documentation::builder(SECTION, self.description, self.syntax).with_sql_example(self.example);
        self.arguments.iter().fold(with_example, |builder, (name, text)| builder.with_argument(*name, *text)).build()
    }
}

impl Function {
    pub fn udf(
        name: &'static str,
        about: About,
        signature: Signature,
        returns: DataType,
        kernel: impl Fn(&Arguments) -> Result<ArrayRef> + Send + Sync + 'static,
    ) -> ScalarUDF {
        ScalarUDF::from(Function { name, signature, returns, documentation: about.documentation(), kernel: Box::new(kernel) })
    }

    /// A function of one text, and a constant where `constants` says so.
    pub fn of_text(
        name: &'static str,
        about: About,
        returns: DataType,
        kernel: impl Fn(&StringArray) -> Result<ArrayRef> + Send + Sync + 'static,
    ) -> ScalarUDF {
        Function::udf(name, about, Signature::string(1, Volatility::Immutable), returns, move |args| kernel(&texts(&args.arrays[0])?))
    }
}

/// A column of texts, whatever the type that holds them.
pub(super) fn texts(array: &ArrayRef) -> Result<StringArray> {
    match array.as_string_opt::<i32>() {
        Some(texts) => Ok(texts.clone()),
        None => Ok(cast(array, &DataType::Utf8)?.as_string::<i32>().clone()),
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let arrays = args.args.iter().map(|arg| match arg {
            ColumnarValue::Array(array) => Ok(array.clone()),
            ColumnarValue::Scalar(scalar) => scalar.to_array_of_size(1),
        });
        let rows = if constant { 1 } else { args.number_rows };
        let result = (self.kernel)(&Arguments { arrays: arrays.collect::<Result<_>>()?, rows })?;
        Ok(match constant {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?),
            false => ColumnarValue::Array(result),
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Function) -> bool {
        self.name == other.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}
