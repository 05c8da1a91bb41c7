//! A chain as SVG, drawn here: layers from top to bottom, the same bytes for the same chain, no font and no script from elsewhere.
//! Colours are classes with custom properties, so that a page can put it into its light and its dark look.

use std::fmt::Write as _;

use super::chain::Chain;
use super::graph::{colours, label, layers};
use crate::svg::escape;

/// Characters on a line of a box.
const WIDTH_CHARS: usize = 38;
const CHAR: usize = 7;
const LINE: usize = 16;
const PAD: usize = 10;
const BOX: usize = WIDTH_CHARS * CHAR + 2 * PAD;
const GAP_X: usize = 28;
const GAP_Y: usize = 40;
const MARGIN: usize = 12;

struct Placed {
    x: usize,
    y: usize,
    height: usize,
    lines: Vec<String>,
}

/// The picture.
pub fn svg(chain: &Chain) -> String {
    let (placed, width, height) = layout(chain);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
         font-family=\"ui-sans-serif, system-ui, sans-serif\" font-size=\"12\">\n<title>{}</title>\n",
        escape(&title(chain))
    );
    out.push_str(
        "<defs><marker id=\"why-arrow\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
         <path d=\"M0 0 L8 4 L0 8 z\" fill=\"#78909c\"/></marker></defs>\n",
    );
    for (place, link) in chain.links.iter().enumerate() {
        for reason in &link.because {
            edge(&mut out, &placed[*reason], &placed[place]);
        }
    }
    for (link, at) in chain.links.iter().zip(&placed) {
        let (fill, border) = colours(link.place);
        let tip = link.rule.as_deref().unwrap_or(link.key);
        let _ = write!(
            out,
            "<g class=\"why-{}\"><title>{}</title><rect x=\"{}\" y=\"{}\" width=\"{BOX}\" height=\"{}\" rx=\"6\" fill=\"{fill}\" stroke=\"{border}\"/>",
            link.place.word(),
            escape(tip),
            at.x,
            at.y,
            at.height
        );
        for (number, line) in at.lines.iter().enumerate() {
            let y = at.y + PAD + LINE * number + 11;
            let style = if number == 0 {
                format!(" fill=\"{border}\" font-weight=\"600\"")
            } else {
                " fill=\"#1c1f22\"".to_owned()
            };
            let _ = write!(
                out,
                "<text x=\"{}\" y=\"{y}\"{style}>{}</text>",
                at.x + PAD,
                escape(line)
            );
        }
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn title(chain: &Chain) -> String {
    format!(
        "Why request {} from {}: {}",
        chain.request, chain.client, chain.ended
    )
}

/// Boxes in layers; in a layer in the order of the mean of their reasons' places, then of the chain.
fn layout(chain: &Chain) -> (Vec<Placed>, usize, usize) {
    let layers = layers(chain);
    let count = layers.iter().max().map_or(0, |last| last + 1);
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (link, layer) in layers.iter().enumerate() {
        rows[*layer].push(link);
    }
    let widest = rows.iter().map(Vec::len).max().unwrap_or(1).max(1);
    let width = 2 * MARGIN + widest * BOX + (widest - 1) * GAP_X;
    let mut placed: Vec<Placed> = chain
        .links
        .iter()
        .map(|link| {
            let lines = label(link, WIDTH_CHARS);
            Placed {
                x: 0,
                y: 0,
                height: lines.len() * LINE + 2 * PAD - 4,
                lines,
            }
        })
        .collect();
    let mut y = MARGIN;
    for row in &mut rows {
        row.sort_by_key(|link| {
            let because = &chain.links[*link].because;
            let sum: usize = because.iter().map(|reason| placed[*reason].x).sum();
            (sum / because.len().max(1), *link)
        });
        let taken = row.len() * BOX + row.len().saturating_sub(1) * GAP_X;
        let mut x = (width - taken) / 2;
        let mut tallest = 0;
        for link in row.iter() {
            placed[*link].x = x;
            placed[*link].y = y;
            tallest = tallest.max(placed[*link].height);
            x += BOX + GAP_X;
        }
        y += tallest + GAP_Y;
    }
    (placed, width, y - GAP_Y.min(y) + MARGIN)
}

fn edge(out: &mut String, from: &Placed, to: &Placed) {
    let (x1, y1) = (from.x + BOX / 2, from.y + from.height);
    let (x2, y2) = (to.x + BOX / 2, to.y - 3);
    let middle = usize::midpoint(y1, y2);
    let _ = writeln!(
        out,
        "<path d=\"M{x1} {y1} C{x1} {middle} {x2} {middle} {x2} {y2}\" fill=\"none\" stroke=\"#78909c\" stroke-width=\"1.5\" marker-end=\"url(#why-arrow)\"/>"
    );
}
