//! Batches that own what they hold. An aggregate hands its groups out as slices of one allocation, and a hash join that
//! collects them counts the whole of it once a slice: a few million uids seemed to take gigabytes.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, Statistics};
use futures::TryStreamExt;

/// Puts an `OwnBuffersExec` before each hash join's collected side.
#[derive(Debug)]
pub(crate) struct OwnBuffers;

impl PhysicalOptimizerRule for OwnBuffers {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|plan| {
            if !plan.is::<HashJoinExec>() {
                return Ok(Transformed::no(plan));
            }
            let mut children: Vec<_> = plan.children().into_iter().cloned().collect();
            children[0] = Arc::new(OwnBuffersExec { input: children[0].clone() });
            Ok(Transformed::yes(plan.with_new_children(children)?))
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "own_buffers"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct OwnBuffersExec {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for OwnBuffersExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("OwnBuffersExec")
    }
}

impl ExecutionPlan for OwnBuffersExec {
    fn name(&self) -> &str {
        "OwnBuffersExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(OwnBuffersExec { input: children.swap_remove(0) }))
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        self.input.partition_statistics(partition)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batches = self.input.execute(partition, context)?;
        let schema = batches.schema();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches.and_then(|batch| async move { own(batch) }))))
    }
}

/// The batch, copied where it is a small part of what it keeps alive.
fn own(batch: RecordBatch) -> Result<RecordBatch> {
    let held: usize = batch.columns().iter().map(|column| column.get_buffer_memory_size()).sum();
    let used: usize = batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0)).sum();
    if held <= 2 * used + (1 << 16) {
        return Ok(batch);
    }
    let all = UInt32Array::from_iter_values(0..batch.num_rows() as u32);
    Ok(take_record_batch(&batch, &all)?)
}
