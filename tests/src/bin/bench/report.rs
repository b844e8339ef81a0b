//! A table of figures with their limits, for people and as JSON.

use std::fmt;

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Held,
    Broken,
    /// The yardstick against itself differs by more than what is to be measured.
    Inconclusive,
    /// There is no limit; for the reader.
    Shown,
}

impl Verdict {
    pub fn at_most(value: f64, limit: f64) -> Verdict {
        if value <= limit { Verdict::Held } else { Verdict::Broken }
    }

    fn word(self) -> &'static str {
        match self {
            Verdict::Held => "held",
            Verdict::Broken => "BROKEN",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Shown => "",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Row {
    pub figure: String,
    pub value: String,
    /// Beside the value: an interval, a second quantile.
    pub beside: String,
    pub limit: String,
    pub verdict: Verdict,
}

impl Row {
    pub fn shown(figure: impl Into<String>, value: impl Into<String>, beside: impl Into<String>) -> Row {
        Row {
            figure: figure.into(),
            value: value.into(),
            beside: beside.into(),
            limit: String::new(),
            verdict: Verdict::Shown,
        }
    }

    /// A number with the largest that is promised.
    pub fn at_most(figure: &str, value: f64, unit: &str, limit: f64) -> Row {
        Row {
            figure: figure.into(),
            value: format!("{} {unit}", short(value)),
            beside: String::new(),
            limit: format!("at most {} {unit}", short(limit)),
            verdict: Verdict::at_most(value, limit),
        }
    }

    pub fn at_least(figure: &str, value: u64, limit: u64) -> Row {
        Row {
            figure: figure.into(),
            value: value.to_string(),
            beside: String::new(),
            limit: format!("at least {limit}"),
            verdict: if value >= limit { Verdict::Held } else { Verdict::Broken },
        }
    }

    pub fn beside(mut self, beside: impl Into<String>) -> Row {
        self.beside = beside.into();
        self
    }
}

/// Whole numbers without, others with two decimals.
pub fn short(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub command: String,
    pub rows: Vec<Row>,
    /// What does not fit a table.
    pub notes: Vec<String>,
}

impl Report {
    pub fn exit_code(&self) -> u8 {
        let any = |verdict| self.rows.iter().any(|row| row.verdict == verdict);
        if any(Verdict::Broken) {
            1
        } else if any(Verdict::Inconclusive) {
            3
        } else {
            0
        }
    }

    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "figure": row.figure, "value": row.value, "beside": row.beside,
                    "limit": row.limit, "verdict": row.verdict.word(),
                })
            })
            .collect();
        json!({ "command": self.command, "rows": rows, "notes": self.notes, "exit": self.exit_code() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n$ {}\n", self.command)?;
        let width = |of: fn(&Row) -> &String| self.rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0);
        let (figure, value, beside, limit) =
            (width(|row| &row.figure), width(|row| &row.value), width(|row| &row.beside), width(|row| &row.limit));
        for row in &self.rows {
            let line = format!(
                "{:<figure$}  {:>value$}  {:<beside$}  {:<limit$}  {}",
                row.figure,
                row.value,
                row.beside,
                row.limit,
                row.verdict.word()
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        for note in &self.notes {
            writeln!(f, "\n{note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_limit_breaks_the_whole() {
        let held = Row::at_most("a", 1.0, "ms", 2.0);
        let broken = Row::at_most("b", 3.0, "ms", 2.0);
        let noisy = Row { verdict: Verdict::Inconclusive, ..held.clone() };
        let code = |rows: &[&Row]| {
            Report { rows: rows.iter().map(|row| (*row).clone()).collect(), ..Report::default() }.exit_code()
        };
        assert_eq!((code(&[&held]), code(&[&held, &noisy]), code(&[&noisy, &broken])), (0, 3, 1));
        assert_eq!(Row::at_least("c", 1, 2).verdict, Verdict::Broken);
    }
}
