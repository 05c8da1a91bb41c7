//! A sweep's recipe as the words of a command line.

use crate::cli::args::quoted;
use crate::experiment::store::manifest::Recipe;

/// The command line of a sweep, without where its results go.
pub fn words(recipe: &Recipe) -> Vec<String> {
    let mut words: Vec<String> = ["sim", "sweep"].map(str::to_owned).into();
    let mut flag = |name: &str, value: &str| {
        words.push(format!("--{name}"));
        words.push(value.to_owned());
    };
    if let Some(file) = &recipe.scenario_file {
        flag("scenario", file);
    }
    for (name, value) in &recipe.fields {
        flag(name, value);
    }
    for value in &recipe.vary {
        flag("vary", value);
    }
    flag("seed", &recipe.seed);
    if let Some(runs) = recipe.runs {
        flag("runs", &runs.to_string());
    }
    if let Some(runs) = recipe.max_runs {
        flag("max-runs", &runs.to_string());
    }
    if let Some(precision) = recipe.precision {
        flag("precision", &precision.to_string());
    }
    if let Some(budget) = &recipe.budget {
        flag("budget", budget);
    }
    if recipe.rare {
        words.push("--rare".to_owned());
    }
    words
}

/// Words as a shell reads them back.
pub fn line(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_split_or_expand() {
        let words = ["a", "100..200 step 5", "it's", "", "x*", "k=v"].map(str::to_owned);
        assert_eq!(line(&words), r"a '100..200 step 5' 'it'\''s' '' 'x*' k=v");
    }
}
