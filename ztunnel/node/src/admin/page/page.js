
'use strict';
// Asks for `overview` while somebody looks, and puts what it says into the document. All of it is text from others:
// it only ever becomes the text of an element, or an attribute that has no meaning to the browser.
(() => {
  const EVERY = 2000;      // ms between two questions
  const PATIENCE = 5000;   // ms that an answer may take
  const STALE = 7000;      // ms after which what is shown is called old
  const HISTORY = 60;      // points of the little plot
  const DRAWN = 9;         // workloads on each side of the drawing
  const SVG = 'http://www.w3.org/2000/svg';

  const $ = id => document.getElementById(id);
  const say = (to, text) => { if (to.textContent !== text) to.textContent = text; };
  const set = (to, name, value) => { if (to.getAttribute(name) !== value) to.setAttribute(name, value); };
  const tone = (to, name) => set(to, 'data-tone', name);

  // el('td.num', child, 'text', ...)
  const el = (what, ...children) => {
    const [tag, ...classes] = what.split('.');
    const made = document.createElement(tag);
    if (classes.length) made.className = classes.join(' ');
    made.append(...children);
    return made;
  };

  // One child for each item, by its key. What has not changed is not touched: nothing flickers, a selection stays.
  const kept = new WeakMap();
  const sync = (parent, items, key, build, fill) => {
    const old = kept.get(parent) || new Map(), now = new Map();
    let at = parent.firstElementChild;
    for (const item of items) {
      let name = key(item);
      while (now.has(name)) name += ' ';
      const one = old.get(name) || build();
      old.delete(name);
      now.set(name, one);
      fill(one.parts, item);
      if (one.root === at) at = at.nextElementSibling;
      else parent.insertBefore(one.root, at);
    }
    for (const one of old.values()) one.root.remove();
    kept.set(parent, now);
  };
  const parts = (root, named) => ({ root, parts: { root, ...named } });

  const rows = (id, list, nothing, key, build, fill) => {
    const table = $(id), more = table.closest('section').querySelector('.more');
    const none = list.rows.length === 0 && nothing;
    say(more, none || (list.left_out ? `and ${number(list.left_out)} more` : ''));
    more.hidden = more.textContent === '';
    table.tHead.hidden = !!none;
    sync(table.tBodies[0], list.rows, key, build, fill);
  };

  const shorter = (text, most) => text.length > most ? `${text.slice(0, most - 1)}…` : text;
  const number = n => n.toLocaleString('en');
  const bytes = n => {
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
    let at = 0;
    while (n >= 1000 && at < units.length - 1) { n /= 1024; at += 1; }
    return `${at === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[at]}`;
  };
  const time = seconds => {
    const s = Math.max(0, Math.floor(seconds));
    const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
    if (d) return h ? `${d} d ${h} h` : `${d} d`;
    if (h) return m ? `${h} h ${m} min` : `${h} h`;
    return m ? `${m} min` : `${s} s`;
  };
  const percent = (part, all) => {
    if (part === all) return '100%';
    // Never rounded up to all of it.
    return `${Math.min(99.99, Math.floor(part / all * 1e4) / 100)}%`;
  };
  const plural = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;

  const account = identity => {
    const found = /^spiffe:\/\/([^/]+)\/ns\/([^/]+)\/sa\/([^/]+)$/.exec(identity || '');
    return found && { domain: found[1], namespace: found[2], name: found[3] };
  };
  const host = name => name.replace(/\.svc\.cluster\.local$/, '.svc');
  const isRest = end => end.namespace === 'overflow' && end.workload === 'overflow';
  const endName = end => {
    if (isRest(end)) return ['', 'all others'];
    if (end.workload) return [end.namespace || '', end.workload];
    const known = account(end.identity);
    return known ? [known.namespace, known.name] : ['', 'not in the mesh'];
  };

  // What stands between backticks is something to type.
  const prose = (to, text) => {
    if (to.textContent !== text.replaceAll('`', '')) {
      to.replaceChildren(...text.split('`').map((part, at) => at % 2 ? el('code', part) : part));
    }
  };

  // `namespace/name`, the namespace in the background.
  const nameParts = () => {
    const namespace = el('span.soft'), name = el('span.name');
    return { shown: el('span', namespace, name), namespace, name };
  };
  const sayName = (to, [namespace, name], title) => {
    say(to.namespace, namespace ? `${namespace}/` : '');
    say(to.name, name);
    set(to.shown, 'title', title || '');
  };

  const STATES = {
    captured: ['good', 'captured'],
    defective: ['bad', 'defective'],
    not_enrolled: ['bad', 'not enrolled'],
    pending: ['quiet', 'pending'],
    leaving: ['quiet', 'leaving'],
    outside: ['quiet', 'not in the mesh'],
  };

  const showPods = list => rows('pods', list, 'This node has no pods that the daemon knows of.',
    pod => JSON.stringify([pod.namespace, pod.name, pod.addresses]),
    () => {
      const name = nameParts(), why = el('span.small.why'), next = el('span.small.soft');
      const state = el('span.pill'), address = el('td.soft');
      return parts(el('tr', el('td', name.shown, why, next), el('td', state), address), { name, why, next, state, address });
    },
    (to, pod) => {
      const [color, text] = STATES[pod.state] || ['quiet', pod.state];
      sayName(to.name, [pod.namespace, pod.name], `service account ${pod.service_account}`);
      tone(to.state, color);
      say(to.state, text);
      tone(to.root, color);
      say(to.why, pod.problem || '');
      prose(to.next, pod.next_step || '');
      const routed = pod.addresses.filter(address => !address.startsWith('fe80:'));
      say(to.address, routed.join(' '));
    });

  const CERTIFICATES = { valid: 'good', pending: 'quiet', renewal_failing: 'warn', failing: 'bad', expired: 'bad' };
  const left = seconds => seconds < 600 ? 'bad' : seconds < 3600 ? 'warn' : 'quiet';

  // The trust domain is told where there is more than one.
  const showCertificates = (list, several) => rows('certs', list, 'There are no certificates yet.',
    one => one.identity,
    () => {
      const name = nameParts(), domain = el('span.small.soft'), why = el('span.small.why');
      const state = el('span.pill'), ends = el('td.num.ends');
      return parts(el('tr', el('td', name.shown, domain, why), el('td', state), ends), { name, domain, why, state, ends });
    },
    (to, one) => {
      const known = account(one.identity), seconds = one.seconds_left;
      sayName(to.name, known ? [known.namespace, known.name] : ['', one.identity], one.identity);
      say(to.domain, known && several ? known.domain : '');
      say(to.why, one.failure ? `${one.failure}; next try in ${time(one.next_try_seconds || 0)}` : '');
      tone(to.state, CERTIFICATES[one.state] || 'quiet');
      say(to.state, one.state.replace('_', ' '));
      tone(to.ends, seconds === null ? 'quiet' : left(seconds));
      say(to.ends, seconds === null ? '–' : seconds < 0 ? `${time(-seconds)} ago` : time(seconds));
    });

  const talkKey = talk => JSON.stringify([talk.source, talk.destination, talk.mutual_tls]);
  const said = talk => talk.bytes_sent + talk.bytes_received;

  const showTalks = (list, rates) => {
    const most = Math.max(1, ...list.rows.map(said));
    rows('talks', list, 'No pod of this node has talked to anybody lately.', talkKey,
      () => {
        const from = nameParts(), to = nameParts(), service = el('span.small.soft'), state = el('span.pill');
        const total = el('span'), bar = el('span.bar'), rate = el('td.num'), open = el('td.num'), failed = el('td.num');
        rate.dataset.label = 'now';
        open.dataset.label = 'open';
        failed.dataset.label = 'failed';
        const cells = [el('td', from.shown), el('td', to.shown, service), el('td', state), el('td.num', total, bar), rate, open, failed];
        return parts(el('tr', ...cells), { from, to, service, state, total, bar, rate, open, failed });
      },
      (to, talk) => {
        const color = talk.mutual_tls ? 'tls' : 'warn', rate = rates.get(talkKey(talk));
        sayName(to.from, endName(talk.source), talk.source.identity);
        sayName(to.to, endName(talk.destination), talk.destination.identity);
        say(to.service, talk.service && !isRest(talk.destination) ? `for ${host(talk.service)}` : '');
        tone(to.root, color);
        tone(to.state, color);
        say(to.state, talk.mutual_tls ? 'mutual TLS' : 'plaintext');
        say(to.total, bytes(said(talk)));
        to.bar.style.width = `${(100 * said(talk) / most).toFixed(1)}%`;
        to.bar.hidden = said(talk) === 0;
        say(to.rate, rate === undefined ? '–' : `${bytes(rate)}/s`);
        say(to.open, number(talk.open));
        to.open.toggleAttribute('data-none', talk.open === 0);
        to.failed.toggleAttribute('data-none', talk.failed === 0);
        say(to.failed, talk.failed ? `${number(talk.failed)} of ${number(talk.connections)}` : '0');
        to.failed.className = talk.failed ? 'num bad' : 'num';
      });
    draw(list.rows);
  };

  // Those who talk on the left, whom they talk to on the right; the thicker, the more.
  const draw = talks => {
    const svg = $('graph'), left = new Map(), right = new Map(), lines = [], most = Math.max(1, ...talks.map(said));
    const place = (side, end) => {
      const key = JSON.stringify(endName(end));
      if (!side.has(key) && side.size < DRAWN) side.set(key, { name: endName(end), wide: 0, used: 0 });
      return side.get(key);
    };
    for (const talk of talks) {
      const [from, to] = [place(left, talk.source), place(right, talk.destination)];
      if (!from || !to) continue;
      const wide = 1.5 + 14 * Math.sqrt(said(talk) / most);
      from.wide += wide;
      to.wide += wide;
      lines.push({ from, to, wide, talk });
    }
    svg.toggleAttribute('hidden', lines.length === 0);
    const room = one => Math.max(20, one.wide) + 12;
    const heightOf = side => [...side.values()].reduce((sum, one) => sum + room(one), 0);
    const height = Math.max(heightOf(left), heightOf(right));
    set(svg, 'viewBox', `0 0 1200 ${height.toFixed(1)}`);
    for (const side of [left, right]) {
      const spare = (height - heightOf(side)) / side.size;
      let top = 0;
      for (const one of side.values()) {
        one.y = top + (room(one) + spare) / 2;
        top += room(one) + spare;
      }
    }
    const shape = (tag, attributes, ...children) => {
      const made = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      made.append(...children);
      return made;
    };
    // Side by side where they leave and where they arrive.
    const next = (one, wide) => {
      one.used += wide;
      return (one.y - one.wide / 2 + one.used - wide / 2).toFixed(1);
    };
    const shapes = lines.map(({ from, to, wide, talk }) => {
      const [a, b] = [next(from, wide), next(to, wide)];
      return shape('path', {
        d: `M226,${a} C600,${a} 600,${b} 974,${b}`,
        'stroke-width': wide.toFixed(1),
        'data-tone': talk.mutual_tls ? 'tls' : 'warn',
      });
    });
    for (const [side, x, text, where] of [[left, 220, 210, 'left'], [right, 974, 990, 'right']]) {
      for (const { name: [namespace, name], y, wide } of side.values()) {
        const tall = Math.max(12, wide), before = namespace ? `${shorter(namespace, 12)}/` : '';
        shapes.push(shape('rect', { x, y: y - tall / 2, width: 6, height: tall, rx: 2 }),
          shape('text', { x: text, y, class: where }, shape('tspan', {}, before), shorter(name, 28 - before.length)));
      }
    }
    svg.replaceChildren(...shapes);
  };

  const FAULTLESS = new Set(['DRAINED', 'RESET', 'PEER_LOST']);

  const failureEnd = end => {
    if (end.name) return [end.namespace || '', end.name];
    const known = account(end.identity);
    return known ? [known.namespace, known.name] : ['', end.address ? end.address.replace(/:\d+$/, '') : 'unknown'];
  };

  const showFailures = (list, reasons, now) => rows('fails', list, 'No connection has failed since the daemon started.',
    one => JSON.stringify([one.reason, one.pod, one.direction, one.source.identity, one.source.name,
      (one.source.address || '').replace(/:\d+$/, ''), one.destination, one.service]),
    () => {
      const when = el('span'), times = el('span.small.soft'), from = nameParts(), to = nameParts();
      const way = el('span.small.soft'), code = el('span.pill'), cause = el('span.small'), error = el('span.small.soft');
      const next = el('span.small');
      const between = el('td', from.shown, el('span.soft', ' → '), to.shown, way);
      return parts(el('tr', el('td', when, times), between, el('td', code, cause, error), el('td', next)),
        { when, times, from, to, way, code, cause, error, next });
    },
    (to, one) => {
      const means = reasons[one.reason] || { cause: '', next_step: '' };
      say(to.when, `${time((now - one.at_ms) / 1000)} ago`);
      say(to.times, one.count > 1 ? `${one.count} times` : '');
      sayName(to.from, failureEnd(one.source), one.source.identity);
      sayName(to.to, failureEnd(one.destination), one.destination.identity);
      const target = one.destination.address || '';
      say(to.way, `${one.direction}, to ${one.service ? `${host(one.service)}, ` : ''}${target}`);
      tone(to.code, FAULTLESS.has(one.reason) ? 'quiet' : 'bad');
      say(to.code, one.reason);
      say(to.cause, means.cause);
      say(to.error, one.error || '');
      prose(to.next, means.next_step);
    });

  const glance = (id, color, text, sub) => {
    say($(id), text);
    say($(`${id}-sub`), sub);
    tone($(id).parentElement, color);
  };

  const showGlance = (all, rate) => {
    const { status, bytes: moved } = all, { pods, control_plane: plane, failures } = status;
    const missing = all.pods.rows.filter(pod => pod.state === 'not_enrolled').length;
    const meant = pods.captured + pods.defective + missing;
    const wrong = [pods.defective && `${pods.defective} defective`, missing && `${missing} not enrolled`].filter(Boolean);
    glance('g-pods', wrong.length ? 'bad' : 'good', meant ? `${pods.captured} of ${meant}` : 'none',
      wrong.length ? wrong.join(', ') : 'measured in the kernel');
    const connected = plane.connected_seconds !== null;
    const pushed = plane.last_push_seconds === null ? 'no push yet' : `last push ${time(plane.last_push_seconds)} ago`;
    glance('g-plane', connected ? plane.rejected ? 'warn' : 'good' : 'bad', connected ? 'connected' : 'away',
      connected ? plane.rejected ? `${plane.rejected} resources rejected` : `for ${time(plane.connected_seconds)}, ${pushed}`
        : `for ${time(plane.lost_seconds || 0)}, ${pushed}`);
    const total = moved.mutual_tls + moved.plain;
    glance('g-tls', moved.plain ? 'warn' : 'good', total ? percent(moved.mutual_tls, total) : '–',
      !total ? 'nothing was said yet' : moved.plain ? `${bytes(moved.plain)} of ${bytes(total)} in plaintext` : `all of ${bytes(total)}`);
    const busy = status.inbound === null || status.outbound === null;
    const open = busy ? 'too busy to count what is open' : `${number(status.inbound)} in, ${number(status.outbound)} out open`;
    glance('g-rate', 'quiet', rate === null ? '–' : `${bytes(rate)}/s`, open);
    const first = status.first_ends_seconds, bad = all.certificates.rows.some(one => CERTIFICATES[one.state] !== 'good' && one.state !== 'pending');
    glance('g-certs', bad ? 'bad' : first === null ? 'quiet' : left(first), first === null ? '–' : `in ${time(first)}`,
      `${status.certificates_valid} of ${status.certificates} valid`);
    const failed = failures.by_reason.reduce((sum, [, count]) => sum + count, 0);
    const such = failures.by_reason.slice(0, 2).map(([reason, count]) => `${number(count)} ${reason}`).join(', ');
    glance('g-fails', failed ? 'warn' : 'good', number(failed), such || 'every connection ended in order');
    say($('g-fails').previousElementSibling, `Failed in the last ${time(Math.max(60, failures.within_seconds))}`);
  };

  const showVerdict = status => {
    const { attention, pending } = status, head = $('verdict-head');
    const many = attention.length;
    tone($('verdict'), many ? 'bad' : 'good');
    say(head, many ? `${plural(many, 'thing needs', 'things need')} attention` : 'All is well');
    sync($('attention'), attention, one => one.problem,
      () => {
        const problem = el('b'), next = el('span.soft');
        return parts(el('li', problem, next), { problem, next });
      },
      (to, one) => { say(to.problem, one.problem); prose(to.next, one.next_step); });
    say($('node'), status.node || 'ztunnel');
    const ready = pending.length ? `not ready: ${pending.join(', ')}` : 'ready';
    say($('about'), [`ztunnel ${status.version}`, status.network && `network ${status.network}`, ready,
      `up ${time(status.up_seconds)}`, plural(status.workloads, 'workload', 'workloads'),
      plural(status.services, 'service', 'services'), plural(status.policies, 'policy', 'policies')].filter(Boolean).join(' · '));
    say(document.querySelector('title'), `${many ? `(${many}) ` : ''}${status.node || 'node'} · ztunnel`);
  };

  const history = [];
  const plot = rate => {
    if (rate !== null) history.push(rate);
    if (history.length > HISTORY) history.shift();
    const most = Math.max(1, ...history), step = 120 / Math.max(1, history.length - 1);
    const points = history.map((one, at) => `${(at * step).toFixed(1)},${(23 - 20 * one / most).toFixed(1)}`);
    set($('spark').firstElementChild, 'd', points.length > 1 ? `M${points.join('L')}` : '');
  };

  // What was said since the answer before, by the clock of the daemon.
  let before = null;
  const ratesOf = all => {
    const rates = new Map(), moved = all.bytes.mutual_tls + all.bytes.plain;
    const seconds = before ? (all.up_ms - before.up_ms) / 1000 : 0;
    const so = before && seconds === 0 ? before : { up_ms: all.up_ms, moved, talks: new Map(), whole: !all.talks.left_out, rates, rate: null };
    if (so === before) return before;
    for (const talk of all.talks.rows) {
      const key = talkKey(talk), now = said(talk);
      so.talks.set(key, now);
      // One that was not shown before is new, unless some were left out.
      const then = before && (before.talks.has(key) ? before.talks.get(key) : before.whole ? 0 : undefined);
      if (seconds > 0 && then !== undefined) rates.set(key, Math.max(0, now - then) / seconds);
    }
    if (seconds > 0) so.rate = Math.max(0, moved - before.moved) / seconds;
    plot(so.rate);
    before = so;
    return so;
  };

  const show = all => {
    const { rates, rate } = ratesOf(all);
    showVerdict(all.status);
    showGlance(all, rate);
    showPods(all.pods);
    const domains = all.certificates.rows.map(one => account(one.identity)?.domain);
    showCertificates(all.certificates, new Set(domains).size > 1);
    showTalks(all.talks, rates);
    showFailures(all.failures, all.reasons, all.now_ms);
  };

  let answered = null, problem = null, asking = false, timer = 0;

  const tell = () => {
    const live = $('live'), age = answered === null ? null : performance.now() - answered;
    const stale = age !== null && age > STALE && !document.hidden;
    document.body.toggleAttribute('data-stale', stale || (problem !== null && age === null));
    if (problem === null && !stale) {
      tone(live, age === null ? 'quiet' : 'good');
      say(live, age === null ? 'asking the daemon' : 'live');
      return;
    }
    tone(live, 'bad');
    say(live, age === null ? problem || 'asking the daemon' : `${problem || 'no answer'}; this is ${time(age / 1000)} old`);
  };

  const ask = async () => {
    clearTimeout(timer);
    if (asking || document.hidden) return;
    asking = true;
    try {
      const answer = await fetch('overview', { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
      if (!answer.ok) throw new Error(`the daemon answers ${answer.status}`);
      const all = await answer.json();
      answered = performance.now();
      problem = null;
      try {
        show(all);
      } catch (error) {
        console.error(error);
        problem = `this page does not understand the daemon: ${error.message}`;
      }
    } catch (error) {
      problem = error.name === 'TimeoutError' ? 'the daemon is slow' : error instanceof TypeError ? 'the daemon cannot be reached' : error.message;
    } finally {
      asking = false;
      timer = setTimeout(ask, EVERY);
    }
    tell();
  };

  document.addEventListener('visibilitychange', ask);
  setInterval(tell, 1000);
  ask();
})();
