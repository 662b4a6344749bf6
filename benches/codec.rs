//! What a job costs before it meets the broker: encoding, decoding, checking its args, its routing key. No broker is
//! needed; `hopline bench` measures with one. Run by `cargo bench`. Numbers of one run can be compared with each
//! other, not with those of another machine.

#![allow(clippy::unwrap_used, reason = "a bench fails by unwrapping")]

use std::{hint::black_box, io::Write, time::Instant};

use bytes::Bytes;
use hopline::{
    Envelope, Kind, QueueName,
    amqp::Names,
    job::{json, wire::Incoming},
};

const ROUNDS: usize = 11;
const TURNS: u32 = 20_000;

/// The median time of one turn, in nanoseconds.
fn measure(mut turn: impl FnMut()) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            (0..TURNS).for_each(|_| turn());
            began.elapsed().as_secs_f64() * 1e9 / f64::from(TURNS)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn main() {
    let queue = QueueName::parse("media").unwrap();
    let args = Bytes::from(format!("{{\"filler\":\"{}\"}}", "x".repeat(242)));
    let envelope = Envelope::new(Kind::parse("image.thumbnail").unwrap(), queue.clone(), args.clone());
    let incoming = Incoming { message: envelope.encode(), ..Incoming::default() };
    let names = Names::new("hopline", "");
    let rows = [
        ("encode an envelope", measure(|| drop(black_box(black_box(&envelope).encode())))),
        (
            "decode an envelope",
            measure(|| drop(black_box(Envelope::decode(black_box(&incoming), &queue, 1 << 20)))),
        ),
        ("check 256 bytes of args", measure(|| drop(black_box(json::check(black_box(&args)))))),
        (
            "route of a delayed job",
            measure(|| drop(black_box(names.route(&queue, "image.thumbnail", 36_000)))),
        ),
    ];
    let mut out = std::io::stdout().lock();
    for (name, nanoseconds) in rows {
        writeln!(out, "{name:<28}{nanoseconds:>10.0} ns").unwrap();
    }
}
