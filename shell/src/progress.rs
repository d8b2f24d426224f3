use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use storage::Progress;

/// Shows a long operation on standard error: a bar with an ETA on a terminal, a plain line now and then elsewhere.
pub(crate) struct Meter {
    verb: &'static str,
    bar: ProgressBar,
    last_line: Mutex<Instant>,
    /// What is counted to, and where and when that began.
    began: Mutex<(u64, u64, Instant)>,
}

const BETWEEN_LINES: Duration = Duration::from_secs(5);

impl Meter {
    pub fn new(verb: &'static str) -> Meter {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Meter { verb, bar, last_line: Mutex::new(Instant::now()), began: Mutex::new((0, 0, Instant::now())) }
    }

    pub fn show(&self, progress: Progress) {
        if self.bar.is_hidden() {
            return self.line(&progress);
        }
        let numbers = match progress.unit {
            "bytes" => "{bytes}/{total_bytes}".to_string(),
            unit => format!("{{pos}}/{{len}} {unit}"),
        };
        let template = format!("{} {{bar:30}} {numbers}, {{eta}} left {{msg}}", self.verb);
        if let Ok(style) = ProgressStyle::with_template(&template) {
            self.bar.set_style(style);
        }
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
        self.bar.set_message(progress.what);
    }

    fn line(&self, progress: &Progress) {
        let left = self.left(progress);
        let mut last = self.last_line.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if last.elapsed() >= BETWEEN_LINES && progress.done < progress.total {
            *last = Instant::now();
            let amount = match progress.unit {
                "bytes" => format!("{:.0} of {:.0} MB", progress.done as f64 / 1e6, progress.total as f64 / 1e6),
                unit => format!("{} of {} {unit}", progress.done, progress.total),
            };
            crate::note!("{} {}: {amount}{left}", self.verb, progress.what);
        }
    }

    /// `, 42 s left` at the pace since this was begun to be counted, nothing before there is one.
    fn left(&self, progress: &Progress) -> String {
        let mut began = self.began.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if began.0 != progress.total || began.1 > progress.done {
            *began = (progress.total, progress.done, Instant::now());
        }
        let (done, seconds) = (progress.done - began.1, began.2.elapsed().as_secs_f64());
        match done > 0 && seconds > 1.0 {
            true => format!(", {} left", duration(seconds * progress.total.saturating_sub(progress.done) as f64 / done as f64)),
            false => String::new(),
        }
    }

    /// Says something while the bar stands aside.
    pub fn suspend(&self, say: impl FnOnce()) {
        self.bar.suspend(say);
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// `42 s`, `12 min`, `3.4 h`, `12 days`.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// Shows the steps of a training on standard error: a bar and the newest figures on a terminal, some dozen lines
/// elsewhere.
pub(crate) struct StepMeter {
    bar: ProgressBar,
    steps: u64,
}

/// Lines of a whole training where there is no terminal.
const LINES: u64 = 12;

impl StepMeter {
    pub fn new(steps: u64) -> StepMeter {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("train {bar:24} {pos}/{len} steps, {eta} left, {prefix}\n{msg}") {
            bar.set_style(style);
        }
        StepMeter { bar, steps }
    }

    /// While `step` of them, counted from 1, is this far.
    pub fn part(&self, step: u64, share: f64) {
        if !self.bar.is_hidden() {
            self.bar.set_prefix(format!("step {step}: {:.0}%", 100.0 * share));
            self.bar.tick();
        }
    }

    /// After `step` of them, counted from 1.
    pub fn show(&self, step: u64, figures: impl Fn() -> String) {
        let line = || crate::note!("step {step:>6}/{} | {}", self.steps, figures());
        let due = step == 1 || step == self.steps || step.is_multiple_of((self.steps / LINES).max(1));
        if self.bar.is_hidden() {
            if due {
                line();
            }
            return;
        }
        if due {
            self.bar.suspend(line);
        }
        self.bar.set_position(step);
        self.bar.set_message(figures());
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
