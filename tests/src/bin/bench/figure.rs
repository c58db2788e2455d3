//! Figures: samples, what is allowed, and the table of both.

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

/// What a figure may be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// The median at most this.
    MedianAtMost(f64),
    /// The median at least this.
    MedianAtLeast(f64),
    /// The 95th percentile at most this.
    P95AtMost(f64),
    /// The 99th percentile at most this.
    P99AtMost(f64),
    /// None; it is printed to be watched.
    None,
}

/// A measured quantity.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    name: String,
    unit: &'static str,
    count: usize,
    p50: f64,
    p95: f64,
    p99: f64,
    /// How far off the median may well be, where that was asked for; see [`Figure::with_error`].
    #[serde(skip_serializing_if = "Option::is_none")]
    standard_error: Option<f64>,
    budget: Budget,
    within: Option<bool>,
}

impl Figure {
    /// A figure from at least one sample, all in `unit`.
    ///
    /// `within` is nothing where there is no budget.
    pub fn new(name: impl Into<String>, unit: &'static str, mut samples: Vec<f64>, budget: Budget) -> Self {
        samples.sort_by(f64::total_cmp);
        let [p50, p95, p99] = [0.50, 0.95, 0.99].map(|part| percentile(&samples, part));
        let within = match budget {
            _ if samples.is_empty() => Some(false),
            Budget::MedianAtMost(limit) => Some(p50 <= limit),
            Budget::MedianAtLeast(limit) => Some(p50 >= limit),
            Budget::P95AtMost(limit) => Some(p95 <= limit),
            Budget::P99AtMost(limit) => Some(p99 <= limit),
            Budget::None => None,
        };
        Self { name: name.into(), unit, count: samples.len(), p50, p95, p99, standard_error: None, budget, within }
    }

    /// As [`Figure::new`], with how far off the median may well be, for who judges by it; the budget is held against the median alone.
    pub fn with_error(name: impl Into<String>, unit: &'static str, samples: Vec<f64>, budget: Budget) -> Self {
        let standard_error = Some(error_of_median(&samples));
        Self { standard_error, ..Self::new(name, unit, samples, budget) }
    }
}

/// How far off the median of samples may well be: 1.253 standard deviations over the root of their number, where they are spread normally. The
/// deviation is taken from the middle half, which strays do not move.
fn error_of_median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let deviation = (percentile(&sorted, 0.75) - percentile(&sorted, 0.25)) / 1.349;
    1.253 * deviation / (samples.len() as f64).sqrt()
}

/// Nearest rank: the smallest sample that `part` of all do not exceed. Not a number if there is none.
pub fn percentile(sorted: &[f64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// All figures for people.
pub fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["what", "n", "p50", "p95", "p99", "unit", "budget", ""]);
    for figure in figures {
        let budget = match figure.budget {
            Budget::MedianAtMost(limit) => format!("p50 ≤ {limit}"),
            Budget::MedianAtLeast(limit) => format!("p50 ≥ {limit}"),
            Budget::P95AtMost(limit) => format!("p95 ≤ {limit}"),
            Budget::P99AtMost(limit) => format!("p99 ≤ {limit}"),
            Budget::None => String::new(),
        };
        let verdict = figure.within.map_or("", |within| if within { "ok" } else { "OVER" });
        let median = match figure.standard_error {
            Some(error) => format!("{} ± {}", short(figure.p50), short(error)),
            None => short(figure.p50),
        };
        table.add_row([
            figure.name.clone(),
            figure.count.to_string(),
            median,
            short(figure.p95),
            short(figure.p99),
            figure.unit.to_owned(),
            budget,
            verdict.to_owned(),
        ]);
    }
    table
}

/// Three significant digits, or all of a large number.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.50, 0.95, 0.99, 1.0].map(|part| percentile(&samples, part)), [50.0, 95.0, 99.0, 100.0]);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn an_error_does_not_excuse_a_median() {
        let figure = |samples: &[f64]| Figure::with_error("x", "%", samples.to_vec(), Budget::MedianAtMost(3.0));
        assert_eq!(figure(&[1.0, 2.0, 9.0]).within, Some(true));
        let unsteady = figure(&[0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(unsteady.within, Some(false));
        // The middle half is 2 to 6: a deviation of 2.97, and 1.253 of that over the root of 5.
        assert!((unsteady.standard_error.unwrap() - 1.66).abs() < 0.01, "{unsteady:?}");
    }

    #[test]
    fn verdicts() {
        let within = |budget| Figure::new("x", "ms", vec![1.0, 2.0, 9.0], budget).within;
        assert_eq!(within(Budget::MedianAtMost(2.0)), Some(true));
        assert_eq!(within(Budget::P99AtMost(8.9)), Some(false));
        assert_eq!(within(Budget::MedianAtLeast(2.1)), Some(false));
        assert_eq!(within(Budget::None), None);
        assert_eq!(Figure::new("x", "ms", vec![], Budget::P95AtMost(1.0)).within, Some(false));
    }
}
