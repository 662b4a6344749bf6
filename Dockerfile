# syntax=docker/dockerfile:1
# One image with all programs: `hopline` (HTTP front, command line) and the workers. docker-compose.yml says which one a
# container runs.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Dependencies are fetched and built once: the registry and the target folder outlive the build. The programs are
# copied out of that folder, as it is no part of the image. Two builds, since one would give the workers what only
# `hopline` needs.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --release --package hopline --bin hopline --features server \
    && cargo build --locked --release --package 'hopline-worker-*' \
    && install -D -t /out target/release/hopline \
        target/release/hopline-worker-demo target/release/hopline-worker-exec \
        target/release/hopline-worker-mail target/release/hopline-worker-media \
        target/release/hopline-worker-webhook

FROM debian:bookworm-slim
# Root certificates are for amqps://. A fixed number for the user, so that volumes can be given to it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 hopline \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin hopline \
    && install --directory --owner=hopline --group=hopline /data /pictures
COPY --from=build /out/ /usr/local/bin/
COPY --chmod=755 config/healthcheck /usr/local/bin/healthcheck
COPY --chown=10001:10001 workers/media/pictures/ /pictures/
ENV MEDIA_ROOT=/pictures
# lapin reads nested headers by recursion without a limit; with the usual 2 MiB of stack a few kilobytes end a process.
ENV RUST_MIN_STACK=67108864
USER 10001:10001
# An instance's own files, and where hopline.toml is looked for.
WORKDIR /data
EXPOSE 8080
# Exec form: the program itself gets SIGTERM, and hands back what it has not finished.
ENTRYPOINT ["hopline"]
CMD ["serve"]
