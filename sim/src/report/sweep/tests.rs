use super::*;

#[test]
fn ends_are_rounded_outwards() {
    let cases = [
        (0.0, "0 %", "0 %"),
        (1.0, "100 %", "100 %"),
        (0.312_34, "31.2 %", "31.3 %"),
        (0.005_93, "0.59 %", "0.60 %"),
        (0.000_012_34, "0.0012 %", "0.0013 %"),
        (0.999_812, "99.981 %", "99.982 %"),
        (0.999_999_999_999_999, "99.999999999999 %", "100 %"),
        (1e-18, "0 %", "0.000000000001 %"),
    ];
    for (value, down, up) in cases {
        assert_eq!(
            (
                end(value, Round::Down).as_str(),
                end(value, Round::Up).as_str()
            ),
            (down, up),
            "{value}"
        );
    }
}

#[test]
fn printed_intervals_hold_the_computed_ones() {
    let number = |text: &str| {
        text.trim_end_matches(" %")
            .parse::<f64>()
            .expect("a number")
            / 100.0
    };
    let mut value = 1e-9;
    while value < 1.0 {
        for value in [value, 1.0 - value] {
            // Parsing and dividing by 100 cost a rounding of their own.
            assert!(number(&end(value, Round::Down)) <= value + 1e-15, "{value}");
            assert!(number(&end(value, Round::Up)) >= value - 1e-15, "{value}");
        }
        value *= 1.37;
    }
}
