// Colours that people with any kind of colour vision tell apart: steps of viridis and cividis, lightest is best.

const VIRIDIS = ['#46327e', '#365c8d', '#277f8e', '#1fa187', '#4ac16d', '#a0da39', '#fde725'];
const CIVIDIS = ['#00224e', '#434e6c', '#7d7c78', '#bcae6c', '#fee838'];
export const NOTHING = '#9aa0a6';

const MEASURES = {
    registered_share: { words: 'Share registered', breaks: [0.5, 0.7, 0.85, 0.95], show: v => `${(100 * v).toFixed(0)} %` },
    gps_median_m: { words: 'Distance to GPS', breaks: [1, 2, 4, 8], show: v => `${+v.toFixed(1)} m`, lowIsGood: true },
    psnr_db: { words: 'Splat: PSNR', breaks: [18, 21, 24, 27], show: v => `${v.toFixed(1)} dB` },
};

/** Ways to colour boxes: `{id, words, of(row) -> class index or -1, colours, keys, text(row)}`. */
export function measures(states) {
    const known = states.filter(s => s.state !== 'empty');
    const colours = known.map((_, i) => VIRIDIS[Math.round(i * (VIRIDIS.length - 1) / Math.max(known.length - 1, 1))]);
    const words = Object.fromEntries(states.map(s => [s.state, s.words]));
    const state = {
        id: 'state', words: 'How far it came', colours, keys: known.map(s => s.words),
        of: row => known.findIndex(s => s.state === row.state), text: row => words[row.state] ?? 'not asked for yet',
    };
    return [state, ...Object.entries(MEASURES).map(([id, m]) => measure(id, m))];
}

function measure(id, { words, breaks, show, lowIsGood }) {
    const name = v => show(v).replace('.0', '');
    const keys = [...breaks, null].map((b, i) => (i === 0 ? `below ${name(b)}` : b === null ? `${name(breaks.at(-1))} and more` : `${name(breaks[i - 1])} to ${name(b)}`));
    const order = lowIsGood ? keys.map((_, i) => keys.length - 1 - i) : keys.map((_, i) => i);
    const of = row => (row[id] == null ? -1 : order[breaks.filter(b => row[id] >= b).length]);
    return { id, words, of, colours: CIVIDIS, keys: order.map(i => keys[i]), text: row => (row[id] == null ? 'not measured' : show(row[id])) };
}

export const REACH_KM = [1, 25, 200, 750];
export const REACH = { colours: [...CIVIDIS].reverse(), keys: ['within 1 km', '1 to 25 km', '25 to 200 km', '200 to 750 km', '750 km and more'] };
