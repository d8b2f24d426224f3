use ::gpu::{Kind, Launch, Matmul, Pointer};

use super::{Cuda, THREADS, at, elementwise, int};
use crate::backend::{LossGrads, Span};

/// Logits held at a time: a block of rows of the `[n, n]`.
const BLOCK_VALUES: usize = 1 << 26;

impl Cuda {
    /// Two passes over blocks of rows: the log-sum-exp of all rows and columns, then the gradients. All in float32.
    pub(super) fn contrast(&mut self, to: LossGrads, losses: Span, images: Span, texts: Span, ln_scale: Span) {
        let (n, dim) = (losses.len, images.len / losses.len);
        let block = (BLOCK_VALUES / n).clamp(1, n);
        let products = self.scratch(1, 4 * block * n);
        let vectors = self.scratch(2, 4 * 6 * n);
        let [row_lse, column_lse, diagonal, max, sum, along] = [0, 1, 2, 3, 4, 5].map(|i| vectors + (4 * i * n) as Pointer);
        let [images, texts, d_images, d_texts] = [images, texts, to.d_images, to.d_texts].map(|span| self.at(span));
        let ln_scale = self.arg(ln_scale);
        let rows_of = |at: Pointer, first: usize| at + (4 * first * dim) as Pointer;
        let f32s = |out, a, b, [m, n, k]: [usize; 3], transpose_a, transpose_b, add| {
            let (inputs, output) = (Kind::F32, Kind::F32);
            Matmul { out, a, b, m, n, k, transpose_a, transpose_b, inputs, output, add, bias: None }
        };
        let blocks: Vec<(usize, usize)> = (0..n).step_by(block).map(|first| (first, block.min(n - first))).collect();
        for &(first, rows) in &blocks {
            self.device().matmul(f32s(products, rows_of(images, first), texts, [rows, n, dim], false, true, None));
            let args = [at(row_lse), at(diagonal), at(products), ln_scale, int(first), int(n)];
            self.launch("row_log_sum_exp", Launch::new(rows, THREADS), &args);
            let args = [at(max), at(sum), at(products), ln_scale, int(rows), int(n), int(usize::from(first == 0))];
            self.launch("add_columns", Launch::new(n.div_ceil(64), 64), &args);
        }
        let args = [self.arg(losses), at(column_lse), at(row_lse), at(diagonal), at(max), at(sum), int(n)];
        self.launch("sample_losses", elementwise(n), &args);
        for &(first, rows) in &blocks {
            if blocks.len() > 1 {
                self.device().matmul(f32s(products, rows_of(images, first), texts, [rows, n, dim], false, true, None));
            }
            let args = [at(products), at(along), at(row_lse), at(column_lse), ln_scale, int(first), int(n)];
            self.launch("loss_gradients", Launch::new(rows, THREADS), &args);
            self.device().matmul(f32s(rows_of(d_images, first), products, texts, [rows, dim, n], false, false, None));
            let add = (first > 0).then_some(d_texts);
            self.device().matmul(f32s(d_texts, products, rows_of(images, first), [n, dim, rows], true, false, add));
        }
        let args = [self.arg(to.d_ln_scale), at(along), int(n)];
        self.launch("add_sum", Launch::new(1usize, THREADS), &args);
    }
}
