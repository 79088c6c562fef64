//! How far something is, on a terminal and nowhere else: one line on stderr, taken away at the end.

use std::io::{IsTerminal, Write};

/// Cells of the bar.
const CELLS: u64 = 24;

/// A line of progress; nothing of it stays when it is dropped.
#[derive(Debug)]
pub struct Shown {
    verb: &'static str,
    is_on: bool,
}

impl Shown {
    /// Progress that nobody looks at.
    pub fn nothing() -> Self {
        Self { verb: "", is_on: false }
    }

    /// Progress of `verb`, if stderr is a terminal.
    pub fn on_a_terminal(verb: &'static str) -> Self {
        Self { verb, is_on: std::io::stderr().is_terminal() }
    }

    /// Shows that `done` of `total` bytes of `what` are done.
    pub fn show(&mut self, what: &str, done: u64, total: u64) {
        if self.is_on {
            self.print(&line(self.verb, what, done, total));
        }
    }

    fn print(&self, line: &str) {
        // A terminal that went away is no failure of the work.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.is_on {
            self.print("");
        }
    }
}

fn line(verb: &str, what: &str, done: u64, total: u64) -> String {
    if total == 0 {
        return format!("{verb} {what}");
    }
    let done = done.min(total);
    // In 128 bits: twenty-four times all the bytes may be more than 64 hold.
    let part = |of: u64| (u128::from(done) * u128::from(of) / u128::from(total)) as usize;
    let bar = format!("{:<width$}", "#".repeat(part(CELLS)), width = CELLS as usize);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!("{verb} {what} [{bar}] {:3}%  {:.1} of {:.1} MiB", part(100), mib(done), mib(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_from_left_to_right() {
        assert_eq!(line("committing", "census", 0, 0), "committing census");
        let half = line("committing", "census", 1 << 20, 2 << 20);
        assert_eq!(half, "committing census [############            ]  50%  1.0 of 2.0 MiB");
        assert!(line("committing", "census", u64::MAX, 7).contains("100%"));
    }
}
