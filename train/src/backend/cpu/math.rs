//! exp and erf in forms that compile to vector instructions, accurate to a few units in the last place.

use std::f32::consts::{FRAC_1_SQRT_2, LN_2, LOG2_E};

/// e^x: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' `expf`).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n * ln 2 loses nothing.
    const HIGH: f32 = 0.693_359_4;
    let r = x - n * HIGH - n * (LN_2 - HIGH - 1.0e-10);
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_1e-1;
    let p = p * r * r + r + 1.0;
    // The last bits of `shifted` are those of n: moved to the exponent, with its bias, they make 2^n.
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// erf(x): the rational approximation on [-4, 4] that Eigen and XLA use.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let x2 = x * x;
    let a = -2.726_142_3e-10;
    let a = a * x2 + 2.770_681_4e-8;
    let a = a * x2 - 2.101_024e-6;
    let a = a * x2 - 5.692_506_4e-5;
    let a = a * x2 - 7.349_906_3e-4;
    let a = a * x2 - 2.954_599_8e-3;
    let a = a * x2 - 1.609_603_3e-2;
    let b = -1.456_607_2e-5;
    let b = b * x2 - 2.133_740_6e-4;
    let b = b * x2 - 1.682_827e-3;
    let b = b * x2 - 7.373_329e-3;
    let b = b * x2 - 1.426_473_9e-2;
    x * a / b
}

/// x * Phi(x).
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2))
}

/// Phi(x) + x * phi(x).
#[inline(always)]
pub fn gelu_derivative(x: f32) -> f32 {
    const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
    0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)) + x * FRAC_1_SQRT_2PI * exp(-0.5 * x * x)
}

/// x * sigmoid(1.702 x).
#[inline(always)]
pub fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}

/// s + 1.702 x * s * (1 - s), s being sigmoid(1.702 x).
#[inline(always)]
pub fn quick_gelu_derivative(x: f32) -> f32 {
    let s = 1.0 / (1.0 + exp(-1.702 * x));
    s + 1.702 * x * s * (1.0 - s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_std() {
        for i in -8600..=8800 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 3e-7, "exp({x})");
        }
    }

    #[test]
    fn erf_agrees_with_tables() {
        // Abramowitz and Stegun, table 7.1.
        let table = [
            (0.0, 0.0),
            (0.1, 0.112_462_916),
            (0.5, 0.520_499_878),
            (1.0, 0.842_700_793),
            (1.5, 0.966_105_146),
            (2.0, 0.995_322_265),
            (3.0, 0.999_977_910),
        ];
        for (x, expected) in table {
            assert!((f64::from(erf(x)) - expected).abs() < 2e-7, "erf({x})");
            assert_eq!(erf(-x), -erf(x));
        }
    }
}
