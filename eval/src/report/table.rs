/// Cells of text, and what is in the lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    pub title: String,
    pub header: Vec<String>,
    pub rows: Vec<Row>,
    /// The columns from here on are scores: aligned right, the best marked.
    pub scores_from: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub cells: Vec<String>,
    pub kind: RowKind,
    /// Columns in which it is the best of its kind.
    pub best: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// Measured here.
    Own,
    /// The mean of runs that differ in their seed alone.
    Repeats,
    Published,
    Chance,
}

impl Table {
    pub fn texts(&self) -> Vec<Vec<String>> {
        self.rows.iter().map(|row| row.cells.clone()).collect()
    }

    pub fn csv(&self) -> String {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let rows = std::iter::once(&self.header).chain(self.rows.iter().map(|row| &row.cells));
        rows.for_each(|row| writer.write_record(row).expect("writing to memory"));
        String::from_utf8(writer.into_inner().expect("writing to memory")).expect("cells are text")
    }

    /// A table of GitHub's Markdown, the best in bold.
    pub fn markdown(&self) -> String {
        let escape = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(self.header.iter().map(|cell| escape(cell)).collect());
        text += &line((0..self.header.len()).map(|i| if i < self.scores_from { "---" } else { "---:" }.to_string()).collect());
        for row in &self.rows {
            let cell = |(i, cell): (usize, &String)| if row.best.contains(&i) { format!("**{}**", escape(cell)) } else { escape(cell) };
            text += &line(row.cells.iter().enumerate().map(cell).collect());
        }
        text
    }

    /// A `tabular` in the manner of the package booktabs, the best in bold.
    pub fn latex(&self) -> String {
        let columns: String = (0..self.header.len()).map(|i| if i < self.scores_from { 'l' } else { 'r' }).collect();
        let line = |cells: Vec<String>| format!("{} \\\\\n", cells.join(" & "));
        let mut text = format!("\\begin{{tabular}}{{{columns}}}\n\\toprule\n");
        text += &line(self.header.iter().map(|cell| latex(cell)).collect());
        let mut above = None;
        for row in &self.rows {
            if above != Some(row.kind) {
                text += "\\midrule\n";
            }
            above = Some(row.kind);
            let cell =
                |(i, cell): (usize, &String)| if row.best.contains(&i) { format!("\\textbf{{{}}}", latex(cell)) } else { latex(cell) };
            text += &line(row.cells.iter().enumerate().map(cell).collect());
        }
        text + "\\bottomrule\n\\end{tabular}\n"
    }

    /// Marks the highest of each column of scores among the runs, as they are printed.
    pub fn mark_best(&mut self) {
        for i in self.scores_from..self.header.len() {
            let value = |row: &Row| row.cells[i].split(' ').next().and_then(|cell| cell.parse::<f64>().ok());
            let own = |row: &&mut Row| row.kind == RowKind::Own;
            let best = self.rows.iter().filter(|row| row.kind == RowKind::Own).filter_map(value).fold(f64::NEG_INFINITY, f64::max);
            let rows = self.rows.iter().filter(|row| row.kind == RowKind::Own).count();
            self.rows.iter_mut().filter(own).filter(|row| rows > 1 && value(row) == Some(best)).for_each(|row| row.best.push(i));
        }
    }
}

fn latex(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out += "\\textbackslash{}",
            '~' => out += "\\textasciitilde{}",
            '^' => out += "\\textasciicircum{}",
            '±' => out += "$\\pm$",
            '∩' => out += "$\\cap$",
            '−' => out += "$-$",
            '<' | '>' | '|' => out += &format!("${c}$"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_escaped_and_marked() {
        let row = |cells: [&str; 2], kind| Row { cells: cells.map(str::to_string).to_vec(), kind, best: Vec::new() };
        let mut table = Table {
            title: String::new(),
            header: vec!["a_run".into(), "score".into()],
            rows: vec![row(["50% | x", "0.200"], RowKind::Own), row(["b", "0.300"], RowKind::Own), row(["c", "0.900"], RowKind::Published)],
            scores_from: 1,
        };
        table.mark_best();
        assert_eq!(table.markdown(), "| a_run | score |\n| --- | ---: |\n| 50% \\| x | 0.200 |\n| b | **0.300** |\n| c | 0.900 |\n");
        assert_eq!(table.csv(), "a_run,score\n50% | x,0.200\nb,0.300\nc,0.900\n");
        let latex = table.latex();
        assert!(
            latex.contains("a\\_run & score \\\\\n\\midrule\n50\\% $|$ x & 0.200 \\\\\nb & \\textbf{0.300} \\\\\n\\midrule\nc & 0.900"),
            "{latex}"
        );
    }
}
