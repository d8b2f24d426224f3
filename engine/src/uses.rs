use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::Field;
use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};
use storage::Computed;

/// What a query draws on besides the pool's rows.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    /// Functions with optional files behind them, and the list that each names.
    pub functions: BTreeSet<(String, Option<String>)>,
    pub sets: BTreeSet<String>,
    /// Whether it needs the images' perceptual hashes.
    pub hashes: bool,
    /// Computed columns that it reads.
    pub computed: BTreeSet<String>,
}

const OF_RESOURCES: [&str; 2] = ["lang_fasttext", "mentions_synset"];
const OF_SETS: [&str; 2] = ["nearest_centroid", "max_similarity"];

impl Uses {
    /// What a plan draws on. Subqueries count.
    pub fn of(plan: &LogicalPlan) -> Result<Uses> {
        let mut uses = Uses::default();
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                let is_computed = |field: &&Arc<Field>| Computed::of_field(field).is_some();
                let projected = scan.projected_schema.fields().iter().filter(is_computed);
                uses.computed.extend(projected.map(|field| field.name().clone()));
                let all = scan.source.schema();
                let of_filters =
                    scan.filters.iter().flat_map(Expr::column_refs).filter_map(|column| all.field_with_name(&column.name).ok());
                uses.computed.extend(of_filters.filter(|field| Computed::of_field(field).is_some()).map(|field| field.name().clone()));
            }
            if let LogicalPlan::Extension(extension) = node {
                let of_hashes = [crate::tables::NEAR_DUPLICATES.name, crate::tables::NEAR_EVAL_IMAGES.name];
                uses.hashes |= of_hashes.contains(&extension.node.name());
            }
            node.apply_expressions(|expr| {
                expr.apply(|expr| {
                    if let Expr::ScalarFunction(call) = expr {
                        let constant = call.args.get(1).and_then(text_of);
                        if OF_RESOURCES.contains(&call.name()) {
                            uses.functions.insert((call.name().to_string(), constant));
                        } else if OF_SETS.contains(&call.name()) {
                            uses.sets.extend(constant);
                        }
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        })?;
        Ok(uses)
    }
}

/// The text of a constant, through the casts that analysis adds.
fn text_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten().map(str::to_string),
        Expr::Cast(cast) => text_of(&cast.expr),
        Expr::Alias(alias) => text_of(&alias.expr),
        _ => None,
    }
}
