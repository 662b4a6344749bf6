// What keeps a page up to date: event streams and repeated questions, while the page is seen and "Live" is on.

const followers = new Set();
let on = true;
try {
  on = sessionStorage.getItem('live') !== 'off';
} catch {
  // No storage: on.
}

export const isLive = () => on;

export function setLive(value) {
  on = value;
  try {
    sessionStorage.setItem('live', on ? 'on' : 'off');
  } catch {
    // Forgotten with the page.
  }
  followers.forEach((follower) => follower.check());
}

document.addEventListener('visibilitychange', () => followers.forEach((follower) => follower.check()));

/** Runs `start` while the page is seen and live; `start` returns what ends it. Returns what stops all of it. */
function follow(start) {
  let end;
  const follower = {
    check() {
      const wanted = on && !document.hidden;
      if (wanted && !end) end = start();
      if (!wanted && end) {
        end();
        end = undefined;
      }
    },
  };
  followers.add(follower);
  follower.check();
  return () => {
    followers.delete(follower);
    end?.();
  };
}

/**
 * Follows an event stream: `events` maps names to what takes an event. `changed` hears whether it is connected. The browser
 * reconnects by itself unless it is refused; `again`: also then, after so many ms.
 */
export function stream(address, events, changed = () => {}, again = 0) {
  return follow(() => {
    let source;
    let timer;
    const open = () => {
      source = new EventSource(address);
      for (const [name, take] of Object.entries(events)) source.addEventListener(name, take);
      source.addEventListener('open', () => changed(true));
      source.addEventListener('error', () => {
        const refused = source.readyState === EventSource.CLOSED;
        changed(false, refused);
        if (refused && again) timer = setTimeout(open, again);
      });
    };
    open();
    return () => {
      clearTimeout(timer);
      source.close();
    };
  });
}

/** Asks again and again: `ask` is awaited, then `pause` ms pass. */
export function repeat(ask, pause) {
  return follow(() => {
    let timer;
    let ended = false;
    const turn = async () => {
      try {
        await ask();
      } finally {
        if (!ended) timer = setTimeout(turn, pause);
      }
    };
    timer = setTimeout(turn, pause);
    return () => {
      ended = true;
      clearTimeout(timer);
    };
  });
}
