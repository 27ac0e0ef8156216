//! Points that keep their distance.

use refseg::random::SplitMix64;

/// Places tried around a point before it is given up.
const TRIES: usize = 30;

/// Points `(x, y)` in the unit square, no two closer than `radius`, drawn until there are `most` or
/// the square is full: Bridson's algorithm (2007), with places tried uniformly in the disk of twice
/// the radius around a point.
///
/// At the radius of 0.1 that SAM4MLLM takes, a square is full with 60 to 70 points.
pub fn poisson_disk(radius: f64, most: usize, random: &mut SplitMix64) -> Vec<[f64; 2]> {
    let mut points: Vec<[f64; 2]> = Vec::new();
    if most > 0 {
        points.push([random.uniform(), random.uniform()]);
    }
    // Indices of points around which there may be room.
    let mut open: Vec<usize> = (0..points.len()).collect();
    while !open.is_empty() {
        let drawn = random.below(open.len());
        let centre = points[open[drawn]];
        let before = points.len();
        for _ in 0..TRIES {
            if points.len() == most {
                return points;
            }
            let place = beside(centre, 2.0 * radius, random);
            let is_inside = place.iter().all(|at| (0.0..1.0).contains(at));
            if is_inside && points.iter().all(|&other| distance(place, other) >= radius) {
                open.push(points.len());
                points.push(place);
            }
        }
        if points.len() == before {
            open.swap_remove(drawn);
        }
    }
    points
}

/// A place in the disk around `centre`, each as likely as the other.
fn beside(centre: [f64; 2], radius: f64, random: &mut SplitMix64) -> [f64; 2] {
    let away = radius * random.uniform().sqrt();
    let (sin, cos) = (std::f64::consts::TAU * random.uniform()).sin_cos();
    [centre[0] + away * cos, centre[1] + away * sin]
}

fn distance([x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) -> f64 {
    (x1 - x2).hypot(y1 - y2)
}
