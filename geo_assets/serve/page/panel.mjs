// The panel beside the map. Whatever comes from the lake is put in as text, never as markup.

/** An element: attributes, `on...` listeners, then children (elements or texts; null is left out). */
export function h(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
        else if (value === true) element.setAttribute(name, '');
        else if (value != null && value !== false) element.setAttribute(name, value);
    }
    element.append(...children.flat().filter(child => child != null));
    return element;
}

export const number = v => (v == null ? '–' : Number.isInteger(v) ? v.toLocaleString('en') : Math.abs(v) >= 100 ? Math.round(v).toLocaleString('en') : String(+v.toPrecision(3)));
const plural = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;
export const distance = km => (km < 1 ? `${number(Math.round(1000 * km))} m` : `${number(km)} km`);
const bytes = n => (n >= 1e9 ? `${(n / 1e9).toFixed(1)} GB` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : `${Math.ceil(n / 1e3)} kB`);
const day = text => new Date(text).toLocaleDateString('en-GB', { day: 'numeric', month: 'long', year: 'numeric', timeZone: 'UTC' });
export const degrees = ([lon, lat]) => `${Math.abs(lon).toFixed(4)}° ${lon < 0 ? 'W' : 'E'}, ${Math.abs(lat).toFixed(4)}° ${lat < 0 ? 'S' : 'N'}`;
const heading = (text, level = 3) => h(`h${level}`, {}, text);
const section = (title, ...children) => h('section', {}, heading(title), ...children);

/** A command to type, with a button that copies it. */
export function command(text, say) {
    const copy = async event => {
        await navigator.clipboard.writeText(text);
        event.target.textContent = 'Copied';
        say('Copied');
    };
    return h('div', { class: 'command' }, h('code', {}, text), navigator.clipboard ? h('button', { type: 'button', onclick: copy }, 'Copy') : null);
}

export const nothing = (sentence, next, say) => h('div', { class: 'nothing' }, h('p', {}, sentence), next ? h('p', {}, 'Type:') : null, next ? command(next, say) : null);

/** Bars of the steps, each against the largest. */
function funnel(steps) {
    const most = Math.max(1, ...steps.map(step => step.n));
    return h('ol', { class: 'funnel' }, steps.map(step => {
        const bar = h('span', { class: 'bar', 'aria-hidden': 'true' });
        bar.style.width = `${100 * step.n / most}%`;
        return h('li', {}, h('span', { class: 'step' }, step.words), h('span', { class: 'n' }, number(step.n)), h('span', { class: 'track', 'aria-hidden': 'true' }, bar));
    }));
}

/** Figures with their meaning; the unit, in brackets at its end, goes to the number. */
function terms(rows) {
    return h('table', { class: 'terms' }, h('tbody', {}, rows.map(({ value, meaning }) => {
        const unit = meaning.match(/ ?\[([^\]]+)\]/), [words, ...rest] = meaning.replace(/ ?\[[^\]]+\]/, '').split('; ');
        const shown = typeof value !== 'number' ? String(value) : unit?.[1] === 'deg' && /itude/.test(meaning) ? `${value.toFixed(4)}°` : `${number(value)}${unit ? ` ${unit[1]}` : ''}`.replace(' deg', '°');
        return h('tr', {}, h('th', { scope: 'row', title: rest.join('; ') || null }, words[0].toUpperCase() + words.slice(1)), h('td', {}, shown));
    })));
}

/** One picture that holds photo, render and difference side by side, as a curtain that is drawn over the photo. */
function curtain(url) {
    const part = (place, alt) => h('img', { src: url, alt, class: place, draggable: 'false' });
    const photo = part('left', 'Photo that was held out of the training'), render = part('middle', 'The same view rendered from the splat');
    const stage = h('div', { class: 'stage' }, photo, render, h('span', { class: 'edge', 'aria-hidden': 'true' }));
    const draw = share => { stage.style.setProperty('--at', `${share}%`); };
    const slider = h('input', { type: 'range', min: 0, max: 100, value: 50, 'aria-label': 'How much of the render covers the photo', oninput: event => draw(event.target.value) });
    const follow = event => {
        const box = stage.getBoundingClientRect();
        slider.value = Math.min(100, Math.max(0, 100 * (event.clientX - box.left) / box.width));
        draw(slider.value);
    };
    stage.addEventListener('pointermove', event => (event.pointerType === 'mouse' || event.buttons) && follow(event));
    photo.addEventListener('load', () => { stage.style.aspectRatio = `${(photo.naturalWidth - 8) / 3} / ${photo.naturalHeight}`; });
    draw(50);
    return h('figure', {}, stage, slider, h('figcaption', {}, h('span', {}, 'photo, held out'), h('span', {}, 'render')));
}

const back = (href, text) => h('p', { class: 'back' }, h('a', { href }, `‹ ${text}`));
const title = (text, chip, colour) => {
    const dot = chip && h('span', { class: 'chip' }, h('span', { class: 'swatch' }), chip);
    if (dot) dot.firstChild.style.background = colour;
    return h('h2', { tabindex: '-1' }, text, ' ', dot);
};

/** The list that both views end with: links that the arrow keys walk. */
function list(label, rows) {
    const step = event => {
        const links = [...event.currentTarget.querySelectorAll('a')], i = links.indexOf(document.activeElement);
        const to = { ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: links.length - 1 }[event.key];
        if (to === undefined || !links[to]) return;
        event.preventDefault();
        links[to].focus();
    };
    return h('ul', { class: 'list', 'aria-label': label, onkeydown: step }, rows);
}

function row({ href, colour, name, words, figure, onfocus }) {
    const swatch = h('span', { class: 'swatch' });
    swatch.style.background = colour;
    return h('li', {}, h('a', { href, onfocus, onmouseenter: onfocus }, swatch, h('span', { class: 'name' }, name), h('span', { class: 'words' }, words), h('span', { class: 'n' }, figure)));
}

/** A city: its funnel, its splat and its boxes, the worst by the chosen measure first. */
export function cityPanel(city, steps, boxes, { reading, measure, colour, say, view, hover, most, filter, onfilter }) {
    const size = [city.grid.columns, city.grid.rows].map(n => n * city.grid.box_m / 1000);
    const found = boxes.filter(box => box.box.includes(filter));
    return [
        title(city.city),
        h('p', { class: 'sub' }, `${plural(city.n_boxes, 'box', 'boxes')} of ${number(city.grid.box_m)} m, ${size.map(number).join(' × ')} km, from ${city.source === 'photos' ? 'your photos' : city.source === 'Mapillary' ? 'Mapillary' : 'the embedded demo world'}`),
        reading ? h('p', { class: 'nothing' }, city.n_known ? 'As it was when its SQL models were materialized last; the lake is being read, and what is new appears by itself.' : 'The lake is being read. Of very many boxes this takes minutes; they appear by themselves.') : null,
        city.next && !reading ? nothing(city.n_known ? 'No image of this city was harvested yet.' : 'Nothing of this city is in the lake yet.', city.next, say) : null,
        city.splat ? h('p', { class: 'acts' }, h('button', { type: 'button', class: 'main', onclick: () => view(city.splat, city.city) }, 'Open the splat of the city')) : null,
        city.n_known ? section('How far the images came', funnel(steps.map(step => ({ words: step.words, n: city.totals[step.column] })))) : null,
        boxes.length ? section('Boxes',
            h('div', { class: 'find' }, h('label', { for: 'filter' }, 'Find'), h('input', { id: 'filter', type: 'search', value: filter, placeholder: 'r00c00', autocomplete: 'off', spellcheck: 'false', oninput: event => onfilter(event.target.value) }), h('span', { class: 'sub' }, 'worst first')),
            list('Boxes of the city', found.slice(0, most).map(box => row({ href: `#/${city.city}/${box.box}`, colour: colour(box), name: box.box, words: measure.text(box), figure: plural(box.n_harvested, 'image'), onfocus: () => hover(box.box) }))),
            found.length > most ? h('p', { class: 'sub' }, `${number(most)} of ${number(found.length)}; the others by name or on the map.`) : null) : null,
    ];
}

/** A box in full. */
export function boxPanel(box, { reading, colour, say, view }) {
    const { images: i, splat: s, model: m, certificate: c } = box;
    const when = i && (i.first_at ? (i.first_at === i.last_at ? day(i.first_at) : `${day(i.first_at)} to ${day(i.last_at)}`) : 'time unknown');
    return [
        back(`#/${box.city}`, `All boxes of ${box.city}`),
        title(box.box, box.words, colour),
        h('p', { class: 'sub' }, degrees([(box.bounds[0] + box.bounds[2]) / 2, (box.bounds[1] + box.bounds[3]) / 2])),
        i ? h('p', {}, [plural(box.funnel[1].n, 'image'), plural(i.n_sequences, 'sequence'), i.n_panoramas ? plural(i.n_panoramas, 'panorama') : null, bytes(i.bytes), i.n_dead ? `${i.n_dead} cannot be had` : null].filter(Boolean).join(' · '), h('br'), when) : null,
        box.next && !(reading && box.state === 'unknown') ? nothing(i ? 'The next step of this box:' : 'Nothing was harvested here yet.', box.next, say) : null,
        s?.compare ? section('Photo beside render', curtain(s.compare)) : null,
        s?.status === 'trained' ? h('p', { class: 'acts' },
            s.viewer ? h('button', { type: 'button', class: 'main', onclick: () => view(s.viewer, `${box.city} ${box.box}`) }, 'Open the splat') : null,
            s.ply ? h('a', { class: 'button', href: s.ply, download: `${box.city}_${box.box}.ply` }, 'Download PLY') : null) : null,
        section('How far the images came', funnel(box.funnel)),
        s ? section('Splat', s.status === 'trained' ? h('p', {}, `Trained with ${s.engine}.`) : h('p', {}, `Not trained: ${s.status.replace('_', ' ')}.`), terms(s.terms)) : null,
        m ? section('Reconstruction', h('p', {}, m.n_components > 1 ? `${m.n_components} components; the largest is ${m.status}.` : m.status === 'placed' ? 'One model at its true place.' : `No placed model: ${(m.reason ?? m.status).replaceAll('_', ' ')}.`), terms(m.terms)) : null,
        c ? section('Certificate of the harvest', h('p', { class: c.complete ? 'good' : 'bad' }, h('span', { 'aria-hidden': 'true' }, c.complete ? '✓ ' : '✗ '), c.verdict), terms(c.terms), h('p', { class: 'sub' }, `As of ${c.fetched_at.replace('T', ' ').replace('+00:00', ' UTC')}`)) : null,
        box.credits.length ? section('Credits', h('ul', { class: 'credits' }, box.credits.map(credit => h('li', {}, h('strong', {}, credit.creator), ` ${plural(credit.n_images, 'image')} in ${plural(credit.n_sequences, 'sequence')}, ${credit.licence ?? 'licence unknown'}`))),
            h('p', { class: 'sub' }, 'Every product of these images must carry their credit, as: ', box.credits[0].example)) : null,
    ];
}

export function imagePanel(city, box, image) {
    return [
        back(`#/${city}/${box}`, `Box ${box}`),
        h('h2', { tabindex: '-1', class: 'id' }, image.image_id),
        image.photo ? h('a', { href: image.photo, target: '_blank', rel: 'noopener' }, h('img', { class: 'photo', src: image.photo, alt: `Photo ${image.image_id}` })) : h('p', { class: 'nothing' }, image.reason ?? 'Its file is not in the lake.'),
        h('p', {}, [image.creator, image.captured_at && `${day(image.captured_at)}, ${image.captured_at.slice(11, 16)} UTC`, [image.make, image.model].filter(Boolean).join(' ')].filter(Boolean).join(' · ')),
        image.split ? h('p', {}, `${image.split === 'holdout' ? 'Held out of the training' : 'Trained on'}: the splat shows it at ${image.psnr_db?.toFixed(1) ?? '–'} dB.`) : null,
        h('p', { class: 'sub' }, image.attribution ?? ''),
    ];
}

/** The clustering: its levels, and the largest cells in view. */
export function cellsPanel(levels, level, cells, { say, colour, choose, most }) {
    if (!levels.length) return [];
    const options = levels.map(l => h('option', { value: l.level, selected: l.level === level }, `${l.level}${l.level === 0 ? ', the finest' : l.level === levels.length - 1 ? ', the whole' : ''}: ${plural(l.n_cells, 'cell')}`));
    const now = levels.find(l => l.level === level), { columns: c, n } = cells;
    const index = c.cell_id.map((_, i) => i).slice(0, most);
    return [
        title('Cells of the photos'),
        h('p', { class: 'sub' }, `${plural(now.n_photos, 'photo')} clustered by place, in ${plural(levels.length, 'level')}.`),
        h('label', { class: 'field wide' }, h('span', {}, 'Level'), h('select', { id: 'level', onchange: event => choose(event.target.value) }, options)),
        section(n > c.cell_id.length ? `Largest ${number(c.cell_id.length)} of ${plural(n, 'cell')} in view` : `${plural(n, 'cell')} in view`,
            list('Cells in view', index.map(i => row({ href: `#/cells/${level}/${c.cell_id[i]}`, colour: colour(c.p90_km[i]), name: `cell ${c.cell_id[i]}`, words: `90 % within ${distance(c.p90_km[i])}`, figure: plural(c.n_photos[i], 'photo') })))),
    ];
}

export function cellPanel(cell, levels) {
    const parent = cell.terms.find(term => term.name === 'parent_id');
    return [
        back(`#/cells/${cell.level}`, `Level ${cell.level}`),
        title(`Cell ${cell.cell_id}`),
        h('p', { class: 'sub' }, degrees([cell.lon, cell.lat])),
        parent && cell.level < levels.length - 1 ? h('p', {}, h('a', { href: `#/cells/${cell.level + 1}/${parent.value}` }, `Part of cell ${parent.value} of level ${cell.level + 1}`)) : null,
        terms(cell.terms.filter(term => !['parent_id', 'lon', 'lat'].includes(term.name))),
    ];
}
