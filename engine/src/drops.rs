//! What each condition of a filter removes, before anything is trained on what is left.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, UInt64Type};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, ScalarValue};
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Operator, binary_expr, lit, not, when};
use datafusion::prelude::{DataFrame, col};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use storage::Table;

use crate::computed::unqualified;
use crate::filter::Bound;
use crate::snapshot::Snapshot;
use crate::statements::copy_subset;
use crate::{Error, Result, Session};

/// What a filter does to the rows that reach its `WHERE`.
#[derive(Debug, Clone, PartialEq)]
pub struct Drops {
    /// Rows that reach its outermost `WHERE`, and rows that pass; the pool's rows where it has none that could be taken
    /// apart.
    pub rows: u64,
    pub kept: u64,
    pub conditions: Vec<Condition>,
    /// Survivors in the pool by language, score and size: a heading and its groups, each with the number of samples.
    pub survivors: Vec<(String, Vec<(String, u64)>)>,
}

/// One condition of the `WHERE`, joined to the others by AND.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    pub text: String,
    /// Rows that it would remove alone.
    pub alone: u64,
    /// Rows that it removes and no other condition does.
    pub margin: u64,
}

/// Conditions that are told apart, at most: each is a bit.
const MOST: usize = 62;
/// Survivors whose language is looked at, at most, roughly.
const LANGUAGE_SAMPLE: u64 = 100_000;
const LANGUAGES: usize = 12;

impl Session {
    /// Takes a filter apart at the outermost `WHERE`.
    pub fn drops<'a>(&'a self, filter: &'a Bound) -> BoxFuture<'a, Result<Drops>> {
        async move {
            let (snapshot, frame) = self.frame(self.query(filter.sql())?, filter.params(), false).await?;
            copy_subset::check_columns(frame.schema())?;
            let plan = frame.logical_plan().clone();
            let Some((predicate, input)) = outermost_filter(&plan) else {
                let rows = snapshot.counted(snapshot.table(Table::Pool.name()).await?).await?;
                let kept = snapshot.counted(frame.clone()).await?;
                return Ok(Drops { rows, kept, conditions: Vec::new(), survivors: snapshot.survivors(frame, kept).await? });
            };
            let conditions: Vec<Expr> = split_conjunction(&predicate).into_iter().cloned().collect();
            if conditions.len() > MOST {
                return Err(Error::ManyConditions { filter: filter.name().to_string(), conditions: conditions.len(), most: MOST });
            }
            let failed = snapshot.failed(input, &conditions).await?;
            let all = (1u64 << conditions.len()) - 1;
            let count = |which: &dyn Fn(u64) -> bool| failed.iter().filter(|(mask, _)| which(*mask)).map(|(_, n)| n).sum::<u64>();
            let kept = count(&|mask| mask == 0);
            let conditions = conditions.iter().enumerate().map(|(i, condition)| Condition {
                text: text(condition),
                alone: count(&|mask| mask & (1 << i) != 0),
                margin: count(&|mask| mask & all == 1 << i),
            });
            let conditions = conditions.collect();
            Ok(Drops { rows: count(&|_| true), kept, conditions, survivors: snapshot.survivors(frame, kept).await? })
        }
        .boxed()
    }
}

impl Snapshot {
    async fn counted(&self, frame: DataFrame) -> Result<u64> {
        Ok(self.groups(frame, lit("all")).await?.into_iter().map(|(_, n)| n).sum())
    }

    /// How many rows fail which conditions, one bit a condition; NULL fails.
    async fn failed(&self, input: LogicalPlan, conditions: &[Expr]) -> Result<Vec<(u64, u64)>> {
        let errors = |e| self.error(e);
        let (mut input, mut bits) = (LogicalPlanBuilder::from(input), Vec::new());
        for (i, condition) in conditions.iter().enumerate() {
            let (joined, holds) = marked(input, condition, i).map_err(errors)?;
            let Some(holds) = holds else { return Err(Error::ConditionWithQuery { condition: text(condition) }) };
            bits.push(when(holds.is_true(), lit(0u64)).otherwise(lit(1u64 << i)).map_err(errors)?);
            input = joined;
        }
        let mask = bits.into_iter().reduce(|a, b| binary_expr(a, Operator::BitwiseOr, b)).unwrap_or(lit(0u64));
        let plan = input
            .project(vec![mask.alias("mask")])
            .and_then(|plan| plan.aggregate(vec![col("mask")], vec![count(lit(1)).alias("n")]))
            .and_then(|plan| plan.build())
            .map_err(errors)?;
        let (rows, _) = self.rows(DataFrame::new(self.state(), plan)).await?;
        let batches: Vec<_> = rows.try_collect().await.map_err(errors)?;
        let mut failed = Vec::new();
        for batch in &batches {
            let (masks, counts) = (batch["mask"].as_primitive::<UInt64Type>(), batch["n"].as_primitive::<Int64Type>());
            failed.extend(masks.values().iter().copied().zip(counts.values().iter().map(|n| *n as u64)));
        }
        Ok(failed)
    }

    async fn survivors(&self, filter: DataFrame, kept: u64) -> Result<Vec<(String, Vec<(String, u64)>)>> {
        let errors = |e| self.error(e);
        let pool = self.table(Table::Pool.name()).await?;
        let has = |name: &str| pool.schema().has_column_with_unqualified_name(name);
        let uids = filter.select(vec![col("uid").alias("kept_uid")]).map_err(errors)?;
        let kept_rows = pool.clone().join(uids, JoinType::LeftSemi, &["uid"], &["kept_uid"], None).map_err(errors)?;
        let mut survivors = Vec::new();
        if has("text") {
            let share = (LANGUAGE_SAMPLE as f64 / kept.max(1) as f64).min(1.0);
            let heading = if share < 1.0 { format!("language (of a random {:.2}%)", share * 100.0) } else { "language".into() };
            let sample = kept_rows.clone().filter(self.expr(&pool, &format!("sample_hash(uid, 0) < {share}"))?).map_err(errors)?;
            let mut groups = self.groups(sample, self.expr(&pool, "coalesce(lang(text), 'NULL')")?).await?;
            groups.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
            let others: u64 = groups.iter().skip(LANGUAGES).map(|(_, n)| n).sum();
            groups.truncate(LANGUAGES);
            groups.extend((others > 0).then(|| ("others".to_string(), others)));
            survivors.push((heading, groups));
        }
        for score in ["clip_l14_similarity_score", "clip_b32_similarity_score"].into_iter().filter(|name| has(name)) {
            let deciles: Vec<f64> = self.deciles(&pool, score).await?;
            let arms: String = deciles
                .iter()
                .enumerate()
                .map(|(i, t)| format!("WHEN {score} >= CAST({t:?} AS REAL) THEN '{} from {t:.4}' ", ordinal(i)))
                .collect();
            let decile = format!("CASE WHEN {score} IS NULL OR isnan({score}) THEN 'NULL' {arms} ELSE 'tenth' END");
            let groups = self.groups(kept_rows.clone(), self.expr(&pool, &decile)?).await?;
            survivors.push((
                format!("decile of {score}, the highest first"),
                in_order(groups, |name| (0..10).position(|i| name.starts_with(ordinal(i)))),
            ));
        }
        if has("original_width") && has("original_height") {
            let side = "least(original_width, original_height)";
            let size = format!(
                "CASE WHEN {side} IS NULL THEN 'NULL' WHEN {side} < 200 THEN 'below 200' WHEN {side} < 400 THEN '200 to 399' WHEN {side} < 800 THEN '400 to 799' ELSE '800 and more' END"
            );
            let order = ["below 200", "200 to 399", "400 to 799", "800 and more"];
            let groups = self.groups(kept_rows.clone(), self.expr(&pool, &size)?).await?;
            survivors.push(("smaller side in pixels".into(), in_order(groups, |name| order.iter().position(|known| *known == name))));
        }
        Ok(survivors)
    }

    /// The nine scores that part the pool into tenths, from the highest.
    async fn deciles(&self, pool: &DataFrame, score: &str) -> Result<Vec<f64>> {
        let errors = |e| self.error(e);
        let tenth = |i: usize| self.expr(pool, &format!("top_fraction({score}, {})", i as f64 / 10.0));
        let calls = (1..10).map(tenth).collect::<Result<Vec<_>>>()?;
        let frame = pool.clone().aggregate(vec![], calls).map_err(errors)?;
        let (rows, _) = self.rows(frame).await?;
        let batches: Vec<_> = rows.try_collect().await.map_err(errors)?;
        let value = |column: &arrow::array::ArrayRef| {
            ScalarValue::try_from_array(column, 0).ok()?.cast_to(&arrow::datatypes::DataType::Float64).ok()
        };
        let values = batches.first().into_iter().flat_map(|batch| batch.columns()).filter_map(|column| match value(column)? {
            ScalarValue::Float64(value) => value,
            _ => None,
        });
        Ok(values.collect())
    }

    fn expr(&self, frame: &DataFrame, sql: &str) -> Result<Expr> {
        frame.parse_sql_expr(sql).map_err(|e| self.error(e))
    }

    /// Rows by the value of an expression.
    async fn groups(&self, frame: DataFrame, by: Expr) -> Result<Vec<(String, u64)>> {
        let errors = |e| self.error(e);
        let frame = frame.aggregate(vec![by.alias("name")], vec![count(lit(1)).alias("n")]).map_err(errors)?;
        let (rows, _) = self.rows(frame).await?;
        let batches: Vec<_> = rows.try_collect().await.map_err(errors)?;
        let mut groups = Vec::new();
        for batch in &batches {
            let names = arrow::compute::cast(&batch["name"], &arrow::datatypes::DataType::Utf8).map_err(|e| errors(e.into()))?;
            let (names, counts) = (names.as_string::<i32>(), batch["n"].as_primitive::<Int64Type>());
            groups
                .extend((0..batch.num_rows()).filter(|i| names.is_valid(*i)).map(|i| (names.value(i).to_string(), counts.value(i) as u64)));
        }
        Ok(groups)
    }
}

/// The input with what is needed to tell whether a condition holds, and the expression that tells it. `x IN (SELECT ...)`
/// becomes a join that marks the rows; other queries within a condition are `None`.
fn marked(input: LogicalPlanBuilder, condition: &Expr, i: usize) -> datafusion::common::Result<(LogicalPlanBuilder, Option<Expr>)> {
    match condition {
        Expr::InSubquery(inside) if inside.subquery.outer_ref_columns.is_empty() => {
            let alias = format!("__of_condition_{i}");
            let right = LogicalPlanBuilder::from(inside.subquery.subquery.as_ref().clone()).alias(alias.as_str())?.build()?;
            let (qualifier, field) = right.schema().qualified_field(0);
            let value = Expr::Column(Column::new(qualifier.cloned(), field.name()));
            let on = inside.expr.as_ref().clone().eq(value);
            let joined = input.join_on(right, JoinType::LeftMark, [on])?;
            let mark = Expr::Column(Column::new(Some(alias), "mark"));
            let known = inside.expr.as_ref().clone().is_not_null();
            Ok((joined, Some(if inside.negated { known.and(not(mark)) } else { mark })))
        }
        _ if condition.exists(|expr| Ok(matches!(expr, Expr::InSubquery(_) | Expr::Exists(_))))? => Ok((input, None)),
        _ => Ok((input, Some(condition.clone()))),
    }
}

fn ordinal(i: usize) -> &'static str {
    ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"][i.min(9)]
}

fn in_order(mut groups: Vec<(String, u64)>, place: impl Fn(&str) -> Option<usize>) -> Vec<(String, u64)> {
    groups.sort_by_key(|(name, _)| place(name).unwrap_or(usize::MAX));
    groups
}

/// The condition of the outermost `WHERE`, and what it is asked of.
fn outermost_filter(plan: &LogicalPlan) -> Option<(Expr, LogicalPlan)> {
    match plan {
        LogicalPlan::Filter(filter) => Some((filter.predicate.clone(), filter.input.as_ref().clone())),
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Sort(_) => outermost_filter(plan.inputs().first()?),
        _ => None,
    }
}

/// A condition as a person would write it.
fn text(condition: &Expr) -> String {
    let mut subquery = false;
    let _ = condition.apply(|expr| {
        subquery |= matches!(expr, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_));
        Ok(TreeNodeRecursion::Continue)
    });
    let plain = unqualified(condition.clone()).unwrap_or_else(|_| condition.clone());
    let text = datafusion::sql::unparser::expr_to_sql(&plain).map_or_else(|_| plain.to_string(), |sql| without_quotes(&sql.to_string()));
    let text = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')).unwrap_or(&text).to_string();
    if subquery && text.chars().count() > 160 { text.chars().take(159).chain(['…']).collect() } else { text }
}

/// Without the quotes around names such as `"text"`, which are words of SQL as well; texts keep theirs.
fn without_quotes(sql: &str) -> String {
    let mut in_text = false;
    let keep = |c: &char| {
        in_text ^= *c == '\'';
        in_text || *c != '"'
    };
    sql.chars().filter(keep).collect()
}
