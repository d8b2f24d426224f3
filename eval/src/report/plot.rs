//! Plots as SVG text, to stand inside a page.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: u32 = 860;
const GREY: RGBColor = RGBColor(110, 110, 110);
const PALE: RGBColor = RGBColor(225, 225, 225);
const BETTER: RGBColor = RGBColor(0, 114, 178);
const WORSE: RGBColor = RGBColor(213, 94, 0);
/// Told apart by readers with colour blindness. Source: Okabe and Ito 2008.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(80, 80, 80),
];
/// Points of a curve at most: more cannot be seen.
const POINTS: usize = 300;

/// A bar with its label; an error of 0 draws none.
pub(super) struct Bar {
    pub label: String,
    pub value: f64,
    pub error: f64,
    /// Pale, for what was not measured here.
    pub pale: bool,
}

pub(super) fn colour(i: usize) -> RGBColor {
    COLOURS[i % COLOURS.len()]
}

/// Drawing into memory does not fail.
fn svg(height: u32, draw: impl FnOnce(&DrawingArea<SVGBackend, Shift>) -> Result<(), Box<dyn std::error::Error>>) -> String {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&area).and_then(|()| Ok(area.present()?)).expect("drawing into memory");
    }
    // As wide as the page allows.
    text.replacen(&format!("width=\"{WIDTH}\" height=\"{height}\""), "width=\"100%\" role=\"img\"", 1)
}

/// The means of stretches of a curve, so that it has some hundred points.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(POINTS).max(1);
    let mean = |points: &[(f64, f64)]| {
        let n = points.len() as f64;
        (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(stretch).map(mean).collect()
}

/// `12.8M`, `300k`.
fn short(value: f64) -> String {
    let (value, unit) = match value {
        v if v >= 1e9 => (v / 1e9, "B"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e3 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let text = format!("{value:.1}");
    format!("{}{unit}", text.trim_end_matches(".0"))
}

/// Losses over samples seen, a line a run, in the order of the colours.
pub(super) fn losses(curves: &[Vec<(f64, f64)>]) -> String {
    let curves: Vec<Vec<(f64, f64)>> = curves.iter().map(|curve| thinned(curve)).collect();
    let all = || curves.iter().flatten().filter(|p| p.1.is_finite());
    let most = all().map(|p| p.0).fold(1.0, f64::max);
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let (low, high) = if low < high { (low, high) } else { (0.0, 1.0) };
    let room = 0.05 * (high - low);
    svg(320, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(42)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..most, (low - room).max(0.0)..high + room)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(PALE)
            .axis_style(GREY)
            .label_style(("sans-serif", 13, &GREY))
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&|x| short(*x))
            .x_desc("samples seen")
            .y_desc("loss")
            .draw()?;
        for (i, curve) in curves.iter().enumerate() {
            let points = curve.iter().copied().filter(|p| p.1.is_finite());
            chart.draw_series(LineSeries::new(points, colour(i).stroke_width(2)))?;
        }
        Ok(())
    })
}

const ROW: u32 = 24;
const LABELS: u32 = 270;

/// Horizontal bars from 0, with their values, and a line where chance lies.
pub(super) fn scores(bars: &[Bar], chance: Option<f64>) -> String {
    let most = bars.iter().map(|bar| bar.value + bar.error).chain(chance).fold(1e-3, f64::max) * 1.12;
    rows(
        bars,
        0.0..most,
        |bar| (if bar.pale { RGBColor(170, 178, 189) } else { BETTER }, format!("{:.3}", bar.value)),
        chance.map(|c| (c, "chance")),
    )
}

/// Differences: horizontal bars to both sides of 0, as far as `most`, so that plots can be compared.
pub(super) fn differences(bars: &[Bar], most: f64) -> String {
    let most = most.max(1e-3) * 1.25;
    rows(bars, -most..most, |bar| (if bar.value < 0.0 { WORSE } else { BETTER }, format!("{:+.3}", bar.value)), None)
}

fn rows(bars: &[Bar], range: std::ops::Range<f64>, look: impl Fn(&Bar) -> (RGBColor, String), line: Option<(f64, &str)>) -> String {
    let n = bars.len() as f64;
    let height = bars.len() as u32 * ROW + 62;
    svg(height, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_top(18)
            .x_label_area_size(30)
            .y_label_area_size(LABELS)
            .build_cartesian_2d(range, 0.0..n)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .light_line_style(TRANSPARENT)
            .bold_line_style(PALE)
            .axis_style(GREY)
            .label_style(("sans-serif", 13, &GREY))
            .x_labels(8)
            .x_label_formatter(&|x| tick(*x))
            .draw()?;
        let style = |h| ("sans-serif", 14).into_font().color(&BLACK).pos(Pos::new(h, VPos::Center));
        for (i, bar) in bars.iter().enumerate() {
            let y = n - i as f64 - 0.5;
            let (fill, value) = look(bar);
            chart.draw_series([Rectangle::new([(0.0, y - 0.34), (bar.value, y + 0.34)], fill.filled())])?;
            let mut end = bar.value;
            if bar.error > 0.0 {
                let (from, to) = (bar.value - bar.error, bar.value + bar.error);
                end = if bar.value < 0.0 { from } else { to };
                let stroke = BLACK.stroke_width(1);
                chart.draw_series([
                    PathElement::new(vec![(from, y), (to, y)], stroke),
                    PathElement::new(vec![(from, y - 0.15), (from, y + 0.15)], stroke),
                    PathElement::new(vec![(to, y - 0.15), (to, y + 0.15)], stroke),
                ])?;
            }
            let at = chart.backend_coord(&(end, y));
            let (h, shift) = if bar.value < 0.0 { (HPos::Right, -6) } else { (HPos::Left, 6) };
            area.draw(&Text::new(value, (at.0 + shift, at.1), style(h)))?;
            area.draw(&Text::new(shortened(&bar.label), (LABELS as i32, at.1), style(HPos::Right)))?;
        }
        if let Some((x, name)) = line {
            chart.draw_series([PathElement::new(vec![(x, 0.0), (x, n)], GREY.stroke_width(1))])?;
            let at = chart.backend_coord(&(x, n));
            let style = ("sans-serif", 12).into_font().color(&GREY).pos(Pos::new(HPos::Center, VPos::Bottom));
            area.draw(&Text::new(name.to_string(), (at.0, at.1 - 2), style))?;
        }
        Ok(())
    })
}

/// As few decimals as tell it, and no minus before a zero.
fn tick(x: f64) -> String {
    let text = format!("{:.3}", if x.abs() < 5e-4 { 0.0 } else { x });
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// What fits beside a bar.
fn shortened(label: &str) -> String {
    const MOST: usize = 38;
    match label.chars().count() > MOST {
        true => label.chars().take(MOST - 1).chain(['…']).collect(),
        false => label.to_string(),
    }
}
