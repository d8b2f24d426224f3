use ::gpu::{Arg, Launch};

use super::{Cuda, Precision, at, int, ints};
use crate::backend::{Attended, Attention, AttentionGrads, Span};

/// Threads of a block, and so its warps.
const THREADS: u32 = 128;
/// The width of head, and bytes of a row in shared memory, that `attention_mma.cu` has.
const HEAD: usize = 64;
const ROW: usize = 144;

/// How a shape's attention is computed.
struct Plan {
    mma: bool,
    launch: Launch,
    /// Shared memory of `attention_backward_kv`.
    shared_kv: u32,
    /// What follows the spans in each kernel's arguments.
    args: Vec<Arg>,
    /// Operations of one product of all queries with all keys.
    product: f64,
}

impl Cuda {
    fn attention_plan(&mut self, shape: Attention) -> Plan {
        let sequences = shape.starts.len() - 1;
        let lengths = shape.starts.windows(2).map(|rows| rows[1] - rows[0]);
        let longest = lengths.clone().max().unwrap_or(0);
        let most_queries = if shape.queries.is_some() { 1 } else { longest };
        let pairs: usize = lengths.map(|keys| keys * if shape.queries.is_some() { 1 } else { keys }).sum();
        let staged = |rows: usize| rows.next_multiple_of(16) * (2 * ROW + 8);
        let room = self.device().info().shared;
        let mma = self.precision == Precision::Bf16 && shape.head_width == HEAD && staged(longest) <= room;
        let starts = self.index(&ints(shape.starts));
        let own = match shape.queries {
            None => at(0),
            Some(queries) => {
                let own: Vec<usize> = queries.iter().zip(shape.starts).map(|(row, start)| row - start).collect();
                self.index(&ints(&own))
            }
        };
        let mut args = vec![starts, own, int(shape.heads)];
        if !mma {
            args.push(int(shape.head_width));
        }
        args.push(Arg::Int(i32::from(shape.causal)));
        if !mma {
            args.push(int(longest));
        }
        let (shared, shared_kv) = match mma {
            true => (staged(longest), staged(most_queries)),
            false => (4 * longest * THREADS as usize / 32, 8 * longest * THREADS as usize / 32),
        };
        let launch = Launch { grid: (sequences as u32, shape.heads as u32), threads: THREADS, shared: shared as u32 };
        Plan { mma, launch, shared_kv: shared_kv as u32, args, product: 2.0 * (pairs * shape.heads * shape.head_width) as f64 }
    }

    pub(super) fn attend(&mut self, out: Span, lse: Span, q: Span, kv: Span, shape: Attention) {
        let plan = self.attention_plan(shape);
        let spans = [out, lse, q, kv].map(|span| self.arg(span));
        let kernel = if plan.mma { "attention_mma" } else { "attention" };
        self.launch(kernel, plan.launch, &[&spans[..], &plan.args].concat());
        self.device().count_flops(2.0 * plan.product);
    }

    pub(super) fn attend_backward(&mut self, grads: AttentionGrads, dout: Span, of: Attended, shape: Attention) {
        let plan = self.attention_plan(shape);
        let along = at(self.scratch(0, 4 * of.lse.len));
        let [dq, dkv, dout, out, lse, q, kv] = [grads.dq, grads.dkv, dout, of.out, of.lse, of.q, of.kv].map(|span| self.arg(span));
        let kernel = if plan.mma { "attention_mma_backward" } else { "attention_backward" };
        let args = [&[dq, along, dout, out, lse, q, kv][..], &plan.args].concat();
        self.launch(&format!("{kernel}_q"), plan.launch, &args);
        let args = [&[dkv, along, dout, lse, q, kv][..], &plan.args].concat();
        self.launch(&format!("{kernel}_kv"), Launch { shared: plan.shared_kv, ..plan.launch }, &args);
        // As the five products that a backward needs, though two are computed twice.
        self.device().count_flops(5.0 * plan.product);
    }
}
