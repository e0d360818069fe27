// What the page shows follows from its address: #/CITY, #/CITY/BOX, #/CITY/BOX/IMAGE, #/cells/LEVEL, #/cells/LEVEL/CELL.

import { CityMap } from './map.mjs';
import { NOTHING, REACH, REACH_KM, measures } from './colours.mjs';
import { boxBounds, boxesIn, feature } from './geometry.mjs';
import { boxPanel, cellPanel, cellsPanel, cityPanel, h, imagePanel, nothing } from './panel.mjs';

const $ = id => document.getElementById(id);
const LOOK_AGAIN_MS = 10_000, LOOK_SOON_MS = 2_000, MOST_NEAR = 16, MOST_ROWS = 100;
const state = { cities: [], rows: [], filter: '', level: 0 };
let map, drawn = '', turn = 0;

// -- asking -----------------------------------------------------------------------------------------------------

async function ask(path) {
    const answer = await fetch(`/api/${path}`, { cache: 'no-cache' });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error);
    return Object.assign(body, { tag: answer.headers.get('etag') });
}

const kept = new Map(); // images and ways of boxes, by path
async function once(path) {
    if (!kept.has(path)) {
        if (kept.size > 200) kept.clear();
        kept.set(path, ask(path).catch(error => { kept.delete(path); throw error; }));
    }
    return kept.get(path);
}

const rowsOf = columns => Object.values(columns)[0].map((_, i) => Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[i]])));
const say = text => { $('said').textContent = text; };

// -- the address ------------------------------------------------------------------------------------------------

const parts = () => location.hash.replace(/^#\/?/, '').split('/').filter(Boolean).map(decodeURIComponent);
const go = (...path) => { location.hash = `/${path.map(encodeURIComponent).join('/')}`; };

function place() {
    const [first, ...rest] = parts();
    if (first === 'cells') return { view: 'cells', level: rest[0] === undefined ? undefined : Number(rest[0]), cell: rest[1] };
    const city = state.cities.find(c => c.city === first) ?? state.cities[0];
    return { view: 'city', city, box: rest[0], image: rest[1], unknown: first && city?.city !== first ? first : undefined };
}

// -- showing ----------------------------------------------------------------------------------------------------

const measure = () => state.measures.find(m => m.id === $('measure').value) ?? state.measures[0];
const colourOf = row => measure().colours[measure().of(row)] ?? NOTHING;
const reachColour = km => REACH.colours[REACH_KM.filter(b => km >= b).length];
const isPhone = () => matchMedia('(max-width: 720px)').matches;

/** What lies over the map: on a phone the sheet below, the legend above. */
function padding() {
    const panel = $('panel').getBoundingClientRect(), box = $('map').getBoundingClientRect();
    if (!isPhone()) return { top: 40, left: box.width > 760 && !$('legend').hidden ? $('legend').offsetWidth + 32 : 48, right: 72, bottom: 48 };
    return { top: ($('legend').offsetHeight || 60) + 20, left: 28, right: 28, bottom: Math.max(40, Math.min(box.bottom - panel.top, box.height * 0.55) + 28) };
}

function fill(children, focus) {
    const at = document.activeElement, had = $('content').contains(at), top = $('content').scrollTop;
    const same = had && (at.id ? `#${at.id}` : at.matches('a[href]') ? `a[href="${CSS.escape(at.getAttribute('href'))}"]` : null);
    $('content').replaceChildren(...children.filter(child => child != null));
    if (!focus) {
        $('content').scrollTop = top;
        if (same) $('content').querySelector(same)?.focus({ preventScroll: true });
    }
    if (focus) {
        $('content').scrollTop = 0;
        if (had || state.acted) $('content').querySelector('h2')?.focus({ preventScroll: true });
    }
}

function legend(keys, colours, rest) {
    const entry = (text, colour) => {
        const swatch = h('span', { class: 'swatch' });
        swatch.style.background = colour;
        return h('li', {}, swatch, text);
    };
    $('keys').replaceChildren(...keys.map((text, i) => entry(text, colours[i])), ...(rest ? [entry(rest, NOTHING)] : []));
    $('legend').hidden = false;
}

/** All keys where there is room, those in use on a phone; and what points and lines are, once they are shown. */
function boxLegend() {
    const used = new Set(state.rows.map(row => measure().of(row))), { keys, colours } = measure();
    const wanted = keys.map((_, i) => i).filter(i => !isPhone() || used.has(i));
    legend(wanted.map(i => keys[i]), wanted.map(i => colours[i]), used.has(-1) ? (measure().id === 'state' ? 'no images' : 'not measured') : null);
    const marks = [['dot', 'image, registered'], ['dot open', 'image, not registered'], ['way', 'way by GPS']];
    $('keys').append(...marks.map(([kind, text]) => h('li', { class: 'mark' }, h('span', { class: kind }), text)));
}

async function render({ moved = true, fresh = false } = {}) {
    const mine = ++turn, at = place();
    const current = () => mine === turn;
    document.body.dataset.view = at.view;
    for (const [id, view] of [['to-boxes', 'city'], ['to-cells', 'cells']]) {
        if (at.view === view) $(id).setAttribute('aria-current', 'page');
        else $(id).removeAttribute('aria-current');
    }
    try {
        await (at.view === 'cells' ? showCells(at, current, moved) : showCity(at, current, moved, fresh));
    } catch (error) {
        if (current()) fill([h('h2', { tabindex: '-1' }, 'This cannot be shown'), h('p', { class: 'bad' }, error.message), h('p', {}, h('a', { href: '#/' }, 'To the first city'))], true);
    }
    if (current()) document.body.dataset.shown = location.hash;
}

async function showCity({ city, box, image, unknown }, current, moved, fresh) {
    map.clear('cells', 'reach');
    if (!city) {
        $('legend').hidden = true;
        return fill([h('h2', { tabindex: '-1' }, 'No city yet'), nothing('The settings name no city: add one, by a rectangle, a polygon or a folder of photos.', state.next, say)], true);
    }
    if (unknown) throw new Error(`There is no city ${unknown}.`);
    $('city').value = city.city;
    $('to-boxes').href = `#/${city.city}`;
    document.title = [image ?? box, city.city, 'geo-assets'].filter(Boolean).join(' · ');
    const answer = await ask(`cities/${city.city}/boxes`);
    if (!current()) return;
    state.rows = rowsOf(answer.columns);
    const key = `${city.city} ${answer.tag} ${$('measure').value} ${state.reading}`;
    if (key !== drawn) map.boxes(city.grid, state.rows, measure());
    const another = !drawn.startsWith(`${city.city} `), changed = key !== drawn;
    drawn = key;
    boxLegend();
    if (box) await showBox(city, box, image, current, moved, another);
    else {
        map.choose(null);
        if (moved || changed) cityList(city, moved && !fresh);
        if (another || moved) map.show(seen(city), padding(), !another);
    }
    await near();
}

/** Bounds of the boxes that hold images, or of the whole city. */
function seen(city) {
    const all = state.rows.filter(row => row.n_tile_images || row.n_harvested).map(row => boxBounds(city.grid, row.box));
    if (!all.length) return city.bounds;
    return [0, 1, 2, 3].map(i => all.reduce((v, b) => (i < 2 ? Math.min(v, b[i]) : Math.max(v, b[i])), all[0][i]));
}

function cityList(city, focus) {
    const rank = row => (measure().of(row) < 0 ? -1 : measure().of(row));
    const filled = state.rows.filter(row => row.state !== 'empty');
    const worst = filled.sort((a, b) => rank(a) - rank(b) || (a[measure().id] - b[measure().id] || 0) || a.box.localeCompare(b.box));
    const onfilter = text => {
        state.filter = text;
        cityList(city, false);
        const field = $('filter');
        field.focus();
        field.setSelectionRange(text.length, text.length);
    };
    fill(cityPanel(city, state.steps, worst, { reading: state.reading, measure: measure(), colour: colourOf, say, view, hover: name => map.hover(name), most: MOST_ROWS, filter: state.filter, onfilter }), focus);
}

async function showBox(city, box, image, current, moved, another) {
    const found = await ask(`cities/${city.city}/boxes/${encodeURIComponent(box)}`);
    const one = image && await once(`cities/${city.city}/boxes/${box}/images/${encodeURIComponent(image)}`);
    const images = image && await once(`cities/${city.city}/boxes/${box}/images`);
    if (!current()) return;
    const tag = `${found.tag} ${image ?? ''} ${measure().id}`;
    if (moved || tag !== state.shown) {
        fill(image ? imagePanel(city.city, box, one) : boxPanel(found, { reading: state.reading, colour: colourOf(state.rows.find(row => row.box === box) ?? {}), say, view }), moved);
    }
    state.shown = tag;
    const i = image ? images.columns.image_id.indexOf(image) : -1;
    map.choose(i >= 0 ? [images.columns.lon[i], images.columns.lat[i]] : found.bounds);
    if (moved && (!image || another)) map.show(found.bounds, padding(), !another);
    say(`${image ? `Image ${image}` : `Box ${box}: ${found.words}`}`);
}

/** Images and ways of the boxes in view, once they are large enough to hold them. */
async function near() {
    const { view, city } = place();
    const names = view === 'city' && city && map.near ? boxesIn(city.grid, map.bounds, MOST_NEAR) : null;
    document.body.classList.toggle('near', Boolean(names));
    if (!names) return map.clear('images', 'sequences');
    const known = new Set(state.rows.filter(row => row.n_harvested).map(row => row.box));
    const here = names.filter(name => known.has(name)), mine = turn;
    const path = (name, what) => `cities/${city.city}/boxes/${name}/${what}`;
    const [images, ways] = await Promise.all(['images', 'sequences'].map(what => Promise.all(here.map(name => once(path(name, what))))));
    if (mine !== turn) return;
    const points = images.flatMap(({ columns }, i) => rowsOf(columns).map(row => feature({ type: 'Point', coordinates: [row.lon, row.lat] }, { ...row, box: here[i], tip: `image ${row.image_id}${row.registered ? '' : ', not registered'}` })));
    map.inside(points, ways.flatMap(way => way.features));
}

async function showCells({ level, cell }, current, moved) {
    document.title = 'Cells · geo-assets';
    if (drawn) map.clear('boxes', 'names', 'grid', 'images', 'sequences');
    drawn = '';
    document.body.classList.remove('near');
    const { levels, next } = await ask('cells');
    if (!current()) return;
    if (!levels.length) {
        $('legend').hidden = true;
        map.choose(null);
        return fill([h('h2', { tabindex: '-1' }, 'No cells yet'), nothing('The coordinates of the photos were not clustered yet.', next, say)], true);
    }
    if (level === undefined || Number.isNaN(level)) level = Math.min(state.level, levels.length - 1);
    state.level = level;
    if (moved && state.was !== 'cells') map.show([-170, -56, 180, 72], { ...padding(), top: 16, left: 16, right: 16 }, false);
    state.was = 'cells';
    const found = await ask(`cells/${level}?bbox=${map.bounds.map(v => v.toFixed(5)).join()}`);
    if (!current()) return;
    map.cells(rowsOf(found.columns));
    legend(REACH.keys, REACH.colours);
    const one = cell !== undefined && await ask(`cells/${level}/${encodeURIComponent(cell)}`);
    if (!current()) return;
    map.choose(one ? [one.lon, one.lat] : null);
    if (one && moved) map.find([one.lon, one.lat]);
    const tag = `${level} ${cell} ${one ? one.tag : found.tag}`, chosen = document.activeElement?.id === 'level';
    if (one && (moved || tag !== state.shown)) fill(cellPanel(one, levels), moved);
    else if (!one && (moved || tag !== state.shown)) fill(cellsPanel(levels, level, found, { say, colour: reachColour, most: MOST_ROWS, choose: value => go('cells', value) }), moved && !chosen);
    state.shown = tag;
}

// -- the splat --------------------------------------------------------------------------------------------------

function view(url, name) {
    $('viewer-title').textContent = name;
    $('viewer-tab').href = $('viewer-frame').src = url;
    $('viewer').showModal();
}

$('viewer').addEventListener('close', () => $('viewer-frame').removeAttribute('src'));
$('viewer-close').addEventListener('click', () => $('viewer').close());

// -- hands ------------------------------------------------------------------------------------------------------

function tip(text, point) {
    $('tip').hidden = !text;
    if (!text) return;
    $('tip').textContent = text;
    $('tip').style.transform = `translate(${Math.min(point.x + 14, $('map').clientWidth - $('tip').offsetWidth - 8)}px, ${point.y + 16}px)`;
}

function tall(yes) {
    document.body.classList.toggle('tall', yes);
    $('grip').setAttribute('aria-expanded', yes);
}

let grabbed;
$('grip').addEventListener('pointerdown', event => { grabbed = event.clientY; $('grip').setPointerCapture(event.pointerId); });
$('grip').addEventListener('pointerup', event => {
    const way = event.clientY - grabbed;
    grabbed = undefined;
    if (Math.abs(way) > 24) { tall(way < 0); state.dragged = true; }
});
$('grip').addEventListener('click', () => { if (!state.dragged) tall(!document.body.classList.contains('tall')); state.dragged = false; });

addEventListener('keydown', event => {
    if (event.key !== 'Escape' || $('viewer').open || event.target.matches('select, input[type=search]')) return;
    const path = parts();
    if (document.body.classList.contains('tall')) tall(false);
    const up = path[0] === 'cells' ? (path.length > 2 ? path.slice(0, 2) : null) : path.length > 1 ? path.slice(0, -1) : null;
    if (!up) return;
    state.from = location.hash;
    go(...up);
});

for (const kind of ['pointerdown', 'keydown']) addEventListener(kind, () => { state.acted = true; }, { capture: true, once: true });
$('skip').addEventListener('click', event => { event.preventDefault(); ($('content').querySelector('a, button, input, select') ?? $('panel')).focus(); });
$('city').addEventListener('change', () => { state.filter = ''; go($('city').value); });
$('measure').addEventListener('change', () => render({ moved: false }).then(() => { const { city, box } = place(); if (city && !box) cityList(city, false); }));
addEventListener('hashchange', async () => {
    if (place().view !== 'cells') state.was = '';
    await render();
    // Back in the list, the keyboard is where it left.
    const link = state.from && $('content').querySelector(`a[href="${CSS.escape(state.from)}"]`);
    if (link) link.focus();
    state.from = undefined;
});

// -- beginning, and looking again -------------------------------------------------------------------------------

async function cities() {
    const { cities, steps, states, next, reading, tag } = await ask('cities');
    if (tag === state.tag) return false;
    Object.assign(state, { cities, steps, states, next, reading, tag, measures: measures(states) });
    $('city').replaceChildren(...cities.map(c => h('option', { value: c.city }, c.city)));
    const chosen = $('measure').value;
    $('measure').replaceChildren(...state.measures.map(m => h('option', { value: m.id, selected: m.id === chosen }, m.words)));
    return true;
}

async function again() {
    if (document.hidden) return;
    if (await cities().catch(() => false)) kept.clear();
    await render({ moved: false, fresh: true });
}

/** While a large lake is read for the first time, more often. */
const look = () => setTimeout(() => again().finally(look), state.reading ? LOOK_SOON_MS : LOOK_AGAIN_MS);

async function begin() {
    fill([h('p', { class: 'sub' }, 'Reading the lake …')], false);
    try {
        const { style } = await ask('settings');
        map = new CityMap('map', style ?? undefined, {
            box: name => go(place().city.city, name),
            image: (box, id) => go(place().city.city, box, id),
            cell: id => go('cells', state.level, id),
            moved: () => (place().view === 'cells' ? state.was === 'cells' && render({ moved: false }) : near()),
            hover: tip,
        });
        await Promise.all([map.ready, cities()]);
    } catch (error) {
        return fill([h('h2', { tabindex: '-1' }, 'The lake cannot be read'), h('p', { class: 'bad' }, error.message)], true);
    }
    window.geoAssets = { map: map.map, state };
    await render();
    look();
}

begin();
