//! The commands of the `ks` program, one a file, and what they share: tables, JSON, units.
pub mod copies;
pub mod doctor;
pub mod fetch;
pub mod jobs;
pub mod key;
pub mod mount;
pub mod nodes;
pub mod recover;
pub mod run;
pub mod status;
pub mod umount;
pub mod r#where;

use clap::Args;
use ks_executor::control::{Control, find_tree};
use serde_json::Value;
use std::future::Future;
use std::path::Path;

/// `--json`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Format {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs a command that talks to a node.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// Connects to the node whose tree holds `path`, or to this machine's.
pub async fn connect(path: Option<&Path>) -> anyhow::Result<Control> {
    Control::connect(&find_tree(path)?.socket).await
}

/// Prints rows under headings; columns are as wide as they must be. Control characters (of file names) are shown escaped.
pub fn print_table(headings: &[&str], rows: Vec<Vec<String>>) {
    let rows = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)));
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_header(headings.iter().map(|heading| heading.to_uppercase()))
        .add_rows(rows);
    // Rows begin where the line does.
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in table.to_string().lines() {
        println!("{}", line.trim_end());
    }
}

/// The text with what cannot be seen (control characters, those that change the direction of the text) as Rust writes it: a
/// file's name cannot move the cursor or break a line.
fn printable(text: &str) -> String {
    let escaped = |c: char| match c {
        '\'' | '"' | '\\' | '\u{300}'..='\u{36f}' => c.to_string(),
        c => c.escape_debug().to_string(),
    };
    text.chars().map(escaped).collect()
}

/// The path that a row is of: bytes that are not UTF-8 as `\xff`, so that it can be told from others.
pub fn shown_path(row: &Value) -> String {
    let Ok(bytes) = hex::decode(text(row, "path_hex")) else {
        return text(row, "path");
    };
    if bytes.is_empty() {
        return text(row, "path");
    }
    let chunks = bytes.utf8_chunks();
    let shown = chunks.map(|part| format!("{}{}", part.valid(), part.invalid().escape_ascii()));
    shown.collect()
}

/// Prints JSON for people and programs alike.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A size with three digits or so and a unit of 1024: `1.46 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (bytes.checked_ilog2().unwrap_or(0) / 10).min(5) as usize;
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 2 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A field of a JSON map as text for a table; absent: empty.
pub fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| {
                item.as_str()
                    .map_or_else(|| item.to_string(), str::to_owned)
            })
            .collect::<Vec<_>>()
            .join(","),
        Some(other) => other.to_string(),
    }
}

/// A field of a JSON map as a number; absent: 0.
pub fn number(value: &Value, field: &str) -> u64 {
    value.get(field).and_then(Value::as_u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{human_bytes, printable, shown_path};
    use serde_json::json;

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(printable("a\nb\u{1b}[31mc é"), "a\\nb\\u{1b}[31mc é");
        assert_eq!(
            printable("it's \\xff \u{202e}e\u{301}"),
            "it's \\xff \\u{202e}e\u{301}"
        );
        let row = json!({"path": "/ks/odd\u{fffd}x", "path_hex": hex::encode(b"/ks/odd\xffx")});
        assert_eq!(shown_path(&row), "/ks/odd\\xffx");
        assert_eq!(shown_path(&json!({"path": "/ks/x"})), "/ks/x");
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.50 KiB");
        assert_eq!(human_bytes(u64::MAX), "16384 PiB");
    }
}
