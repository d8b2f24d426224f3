//! `top_fraction(score, fraction)`. Over groups it holds the scores; over a whole relation an analyzer rule replaces it by
//! passes that each settle 16 bits of the answer with a histogram, so that memory does not grow with the rows.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StructArray, UInt64Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Float32Type, Float64Type, Int8Type, UInt64Type};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{Column, Result, exec_err, plan_err};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, Aggregate, AggregateUDF, AggregateUDFImpl, Documentation, Expr, LogicalPlan, LogicalPlanBuilder, Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::scalar::ScalarValue;

use super::function::About;

const NAME: &str = "top_fraction";
/// Bits that a pass settles.
const PASS_BITS: u32 = 16;
const BINS: usize = 1 << PASS_BITS;

pub(super) fn function() -> AggregateUDF {
    AggregateUDF::from(TopFraction { signature: Signature::user_defined(Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TopFraction {
    signature: Signature,
}

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    let about = About {
        syntax: "top_fraction(score, fraction)",
        description: "DataComp's threshold: of the n scores that are neither NULL nor NaN, sorted descending, the element at index int(n * fraction). Keeping `score >= threshold` keeps n * fraction + 1 rows, and more where scores tie. A fraction of 1 gives the smallest score. Exact; over a whole relation it reads the relation twice (four times where the scores are DOUBLE) and holds half a megabyte a core, with GROUP BY it holds 8 bytes a row.",
        arguments: &[
            ("score", "A number; the result is of its type: REAL, or else DOUBLE."),
            ("fraction", "A number from 0 to 1, the same in every row."),
        ],
        example: "SELECT uid FROM pool WHERE clip_l14_similarity_score >= (SELECT top_fraction(clip_l14_similarity_score, 0.3) FROM pool)",
    };
    about.documentation()
});

fn coerce(types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [DataType::Float16 | DataType::Float32, fraction] if is_number(fraction) => Ok(vec![DataType::Float32, DataType::Float64]),
        [score, fraction] if is_number(score) && is_number(fraction) => Ok(vec![DataType::Float64, DataType::Float64]),
        [score, fraction] => plan_err!("top_fraction takes a score and a fraction, both numbers, got {score} and {fraction}"),
        other => plan_err!("top_fraction takes a score and a fraction, got {} arguments", other.len()),
    }
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_numeric() || data_type.is_null()
}

impl AggregateUDFImpl for TopFraction {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        coerce(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types[0].clone())
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct || !args.order_bys.is_empty() {
            return plan_err!("top_fraction takes neither DISTINCT nor ORDER BY: ask it of SELECT DISTINCT");
        }
        Ok(Box::new(Held { data_type: args.return_type().clone(), keys: Vec::new(), fraction: None }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![counts_field(args.name), Arc::new(Field::new(format!("{}_fraction", args.name), DataType::Float64, true))])
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn counts_field(name: &str) -> FieldRef {
    Arc::new(Field::new(format!("{name}_keys"), DataType::new_list(DataType::UInt64, true), true))
}

/// Numbers that sort as the scores do when SQL compares them (-0 below 0); NaN and NULL give none.
fn for_each_key(scores: &ArrayRef, mut each: impl FnMut(u64)) {
    match scores.data_type() {
        DataType::Float32 => {
            let scores = scores.as_primitive::<Float32Type>();
            let mut key = |score: f32| {
                if !score.is_nan() {
                    let bits = score.to_bits();
                    each(u64::from(if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }));
                }
            };
            match scores.null_count() {
                0 => scores.values().iter().for_each(|score| key(*score)),
                _ => scores.iter().flatten().for_each(key),
            }
        }
        _ => scores.as_primitive::<Float64Type>().iter().flatten().filter(|score| !score.is_nan()).for_each(|score| {
            let bits = score.to_bits();
            each(if bits >> 63 == 1 { !bits } else { bits | 1 << 63 });
        }),
    }
}

/// The score behind a key.
fn score(key: u64, data_type: &DataType) -> ScalarValue {
    match data_type {
        DataType::Float32 => {
            let key = key as u32;
            ScalarValue::Float32(Some(f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })))
        }
        _ => ScalarValue::Float64(Some(f64::from_bits(if key >> 63 == 1 { key & !(1 << 63) } else { !key }))),
    }
}

/// The index of the threshold among n scores.
fn index_of(fraction: f64, n: u64) -> u64 {
    ((n as f64 * fraction) as u64).min(n - 1)
}

/// The fraction, which is the same in every row.
fn set_fraction(fraction: &mut Option<f64>, fractions: &ArrayRef) -> Result<()> {
    let fractions = fractions.as_primitive::<Float64Type>();
    if fractions.null_count() == 0 && fraction.is_some_and(|first| fractions.values().iter().all(|value| *value == first)) {
        return Ok(());
    }
    for value in fractions.iter().flatten() {
        match fraction {
            _ if !(0.0..=1.0).contains(&value) => return exec_err!("top_fraction: the fraction must be between 0 and 1, got {value}"),
            Some(first) if *first != value => {
                return exec_err!("top_fraction: the fraction must be the same in every row, got {first} and {value}");
            }
            _ => *fraction = Some(value),
        }
    }
    Ok(())
}

fn list(values: Vec<u64>) -> ScalarValue {
    let offsets = OffsetBuffer::from_lengths([values.len()]);
    let item = Arc::new(Field::new_list_field(DataType::UInt64, true));
    ScalarValue::List(Arc::new(ListArray::new(item, offsets, Arc::new(UInt64Array::from(values)), None)))
}

/// Every score seen.
#[derive(Debug)]
struct Held {
    data_type: DataType,
    keys: Vec<u64>,
    fraction: Option<f64>,
}

impl Accumulator for Held {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for_each_key(&values[0], |key| self.keys.push(key));
        set_fraction(&mut self.fraction, &values[1])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for keys in states[0].as_list::<i32>().iter().flatten() {
            self.keys.extend_from_slice(keys.as_primitive::<UInt64Type>().values());
        }
        set_fraction(&mut self.fraction, &states[1])
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![list(std::mem::take(&mut self.keys)), ScalarValue::Float64(self.fraction)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let (Some(fraction), n) = (self.fraction, self.keys.len()) else { return ScalarValue::try_from(&self.data_type) };
        if n == 0 {
            return ScalarValue::try_from(&self.data_type);
        }
        let at = index_of(fraction, n as u64) as usize;
        let (_, key, _) = self.keys.select_nth_unstable_by(at, |a, b| b.cmp(a));
        Ok(score(*key, &self.data_type))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.keys.capacity() * size_of::<u64>()
    }
}

/// One pass: given the upper bits of the answer, the next ones. The last pass gives the score itself.
#[derive(Debug, Clone)]
struct Pass {
    signature: Signature,
    /// Bits that earlier passes have settled, and bits of a key.
    settled: u32,
    width: u32,
}

impl PartialEq for Pass {
    fn eq(&self, other: &Pass) -> bool {
        (self.settled, self.width) == (other.settled, other.width)
    }
}

impl Eq for Pass {}

impl Hash for Pass {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.settled, self.width).hash(state);
    }
}

/// What a pass tells the next: the bits settled, and the index of the answer among the scores with these bits.
fn settled_fields() -> Fields {
    Fields::from(vec![Field::new("bits", DataType::UInt64, true), Field::new("index", DataType::UInt64, true)])
}

/// As a dictionary, so that a copy of it beside every row is a byte.
fn settled_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Struct(settled_fields())))
}

impl Pass {
    fn is_last(&self) -> bool {
        self.settled + PASS_BITS == self.width
    }
}

impl AggregateUDFImpl for Pass {
    fn name(&self) -> &str {
        "top_fraction_pass"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(if self.is_last() { types[0].clone() } else { settled_type() })
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Histogram { pass: self.clone(), counts: vec![0; 2 * BINS], before: None, fraction: None }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let before = Field::new(format!("{}_before", args.name), settled_type(), true);
        let fraction = Field::new(format!("{}_fraction", args.name), DataType::Float64, true);
        Ok(vec![counts_field(args.name), Arc::new(fraction), Arc::new(before)])
    }
}

#[derive(Debug)]
struct Histogram {
    pass: Pass,
    /// Two counts a bin, added to in turn: scores crowd into few bins, and an addition waits for the one before it.
    counts: Vec<u64>,
    before: Option<(u64, u64)>,
    fraction: Option<f64>,
}

impl Histogram {
    fn set_before(&mut self, column: &ArrayRef) {
        let rows = column.as_dictionary::<Int8Type>();
        let settled: &StructArray = rows.values().as_struct();
        let number = |column: usize, i: usize| settled.column(column).as_primitive::<UInt64Type>().value(i);
        let mut keys = rows.keys().iter().flatten().map(|key| key as usize);
        let first = keys.find(|i| settled.is_valid(*i) && settled.column(0).is_valid(*i));
        self.before = self.before.or(first.map(|i| (number(0, i), number(1, i))));
    }

    /// The count of each bin.
    fn bins(&self) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + '_ {
        self.counts.as_chunks::<2>().0.iter().map(|[a, b]| a + b)
    }
}

impl Accumulator for Histogram {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        set_fraction(&mut self.fraction, &values[1])?;
        let shift = self.pass.width - self.pass.settled - PASS_BITS;
        let mut turn = 0;
        if self.pass.settled == 0 {
            let counts: &mut [u64; 2 * BINS] = self.counts.as_mut_slice().try_into().expect("two a bin");
            for_each_key(&values[0], |key| {
                turn ^= 1;
                counts[((key >> shift) as usize & (BINS - 1)) * 2 + turn] += 1;
            });
            return Ok(());
        }
        if self.before.is_none() {
            self.set_before(&values[2]);
        }
        let Some((bits, _)) = self.before else { return Ok(()) };
        let counts = &mut self.counts;
        for_each_key(&values[0], |key| {
            if key >> (shift + PASS_BITS) == bits {
                turn ^= 1;
                counts[((key >> shift) as usize & (BINS - 1)) * 2 + turn] += 1;
            }
        });
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for counts in states[0].as_list::<i32>().iter().flatten() {
            let counts = counts.as_primitive::<UInt64Type>();
            self.counts.iter_mut().step_by(2).zip(counts.values()).for_each(|(sum, count)| *sum += count);
        }
        self.set_before(&states[2]);
        set_fraction(&mut self.fraction, &states[1])
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![list(self.bins().collect()), ScalarValue::Float64(self.fraction), settled(self.before)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let n: u64 = self.bins().sum();
        let data_type = if self.pass.width == 32 { DataType::Float32 } else { DataType::Float64 };
        let place = match (self.before, self.fraction) {
            (Some((bits, index)), _) => Some((bits, index)),
            (None, Some(fraction)) if n > 0 && self.pass.settled == 0 => Some((0, index_of(fraction, n))),
            _ => None,
        };
        let Some((bits, mut index)) = place else {
            return if self.pass.is_last() { ScalarValue::try_from(&data_type) } else { Ok(settled(None)) };
        };
        for (bin, count) in self.bins().enumerate().rev() {
            if index < count {
                let bits = bits << PASS_BITS | bin as u64;
                return Ok(if self.pass.is_last() { score(bits, &data_type) } else { settled(Some((bits, index))) });
            }
            index -= count;
        }
        exec_err!("top_fraction: the relation gave other rows when it was read again")
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.counts.capacity() * size_of::<u64>()
    }
}

fn settled(place: Option<(u64, u64)>) -> ScalarValue {
    let column = |value: Option<u64>| Arc::new(UInt64Array::from(vec![value])) as ArrayRef;
    let columns = vec![column(place.map(|(bits, _)| bits)), column(place.map(|(_, index)| index))];
    let place = ScalarValue::Struct(Arc::new(StructArray::new(settled_fields(), columns, None)));
    ScalarValue::Dictionary(Box::new(DataType::Int8), Box::new(place))
}

/// Replaces `top_fraction` over a whole relation by its passes.
#[derive(Debug)]
pub(crate) struct TwoPasses;

impl AnalyzerRule for TwoPasses {
    fn name(&self) -> &str {
        "top_fraction_passes"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let plan = plan.transform_up_with_subqueries(|plan| match plan {
            LogicalPlan::Aggregate(aggregate) if is_whole(&aggregate) => Ok(Transformed::yes(in_passes(aggregate)?)),
            other => Ok(Transformed::no(other)),
        })?;
        Ok(plan.data)
    }
}

/// The call within an aggregate's expression, if it is one of `top_fraction`.
fn call(expr: &Expr) -> Option<&AggregateFunction> {
    match expr {
        Expr::Alias(alias) => call(&alias.expr),
        Expr::AggregateFunction(call) if call.func.name() == NAME && !call.params.distinct && call.params.order_by.is_empty() => Some(call),
        _ => None,
    }
}

fn is_whole(aggregate: &Aggregate) -> bool {
    aggregate.group_expr.is_empty() && aggregate.aggr_expr.iter().any(|expr| call(expr).is_some()) && is_same_again(&aggregate.input)
}

/// Whether a relation gives the same rows when it is read again, and can be read by itself.
fn is_same_again(plan: &LogicalPlan) -> bool {
    let mut same = true;
    let walked = plan.apply_with_subqueries(|plan| {
        same &= !matches!(plan, LogicalPlan::Limit(_)) && !plan.contains_outer_reference();
        plan.apply_expressions(|expr| {
            same &= !expr.is_volatile();
            Ok(TreeNodeRecursion::Continue)
        })
    });
    same && walked.is_ok()
}

fn in_passes(aggregate: Aggregate) -> Result<LogicalPlan> {
    let Aggregate { input, aggr_expr, schema, .. } = aggregate;
    let calls: Vec<&AggregateFunction> = aggr_expr.iter().filter_map(call).collect();
    let width = |call: &AggregateFunction| match call
        .params
        .args
        .first()
        .map(|score| datafusion::logical_expr::ExprSchemable::get_type(score, input.schema()))
    {
        Some(Ok(DataType::Float32)) => 32,
        _ => 64,
    };
    let widest = calls.iter().map(|call| width(call)).max().unwrap_or(32);
    // Narrow scores join in for the last passes.
    let pass_of = |call: &AggregateFunction, settled_of_widest: u32, name: &str| {
        let settled = settled_of_widest.checked_sub(widest - width(call))?;
        let mut args = call.params.args.clone();
        if settled > 0 {
            args.push(Expr::Column(Column::from_name(name)));
        }
        let pass = Pass { signature: Signature::any(args.len(), Volatility::Immutable), settled, width: width(call) };
        Some(Expr::AggregateFunction(AggregateFunction::new_udf(
            Arc::new(AggregateUDF::from(pass)),
            args,
            false,
            call.params.filter.clone(),
            vec![],
            call.params.null_treatment,
        )))
    };
    let names: Vec<String> = (0..calls.len()).map(|i| format!("__top_fraction_{i}")).collect();
    let with_before = |before: Option<LogicalPlan>| match before {
        Some(before) => LogicalPlanBuilder::from(input.as_ref().clone()).cross_join(before)?.build(),
        None => Ok(input.as_ref().clone()),
    };
    let mut before = None;
    for settled in (0..widest - PASS_BITS).step_by(PASS_BITS as usize) {
        let passes = calls.iter().zip(&names).filter_map(|(call, name)| Some(pass_of(call, settled, name)?.alias(name)));
        let passes: Vec<Expr> = passes.collect();
        before = Some(LogicalPlanBuilder::from(with_before(before)?).aggregate(Vec::<Expr>::new(), passes)?.build()?);
    }
    let mut nth = names.iter();
    let last = aggr_expr.iter().enumerate().map(|(i, expr)| match call(expr) {
        Some(call) => {
            let name = nth.next().expect("a name a call");
            let (qualifier, field) = schema.qualified_field(i);
            pass_of(call, widest - PASS_BITS, name).expect("the last pass is everyone's").alias_qualified(qualifier.cloned(), field.name())
        }
        None => expr.clone(),
    });
    let last: Vec<Expr> = last.collect();
    LogicalPlanBuilder::from(with_before(before)?).aggregate(Vec::<Expr>::new(), last)?.build()
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float32Array, Float64Array};

    use super::*;

    #[test]
    fn keys_sort_as_scores_and_lead_back() {
        let scores = [f32::NEG_INFINITY, -1.5, -1e-40, 0.0, 1e-40, 0.3, 1.0, f32::INFINITY];
        let mut keys = Vec::new();
        for_each_key(&(Arc::new(Float32Array::from(scores.to_vec())) as ArrayRef), |key| keys.push(key));
        assert!(keys.is_sorted());
        let back: Vec<ScalarValue> = keys.iter().map(|key| score(*key, &DataType::Float32)).collect();
        assert_eq!(back, scores.map(|score| ScalarValue::Float32(Some(score))));
        let mut wide = Vec::new();
        let doubles: Vec<f64> = scores.iter().map(|score| f64::from(*score)).collect();
        for_each_key(&(Arc::new(Float64Array::from(doubles.clone())) as ArrayRef), |key| wide.push(key));
        assert!(wide.is_sorted());
        assert_eq!(score(wide[1], &DataType::Float64), ScalarValue::Float64(Some(-1.5)));
    }
}
