// The map: boxes, images and sequences of a city, or the cells of the clustering, on a plain background.

import * as maplibre from './maplibre/maplibre-gl.mjs';
import { NOTHING, REACH, REACH_KM } from './colours.mjs';
import { distance } from './panel.mjs';
import { boxBounds, circle, collection, feature, graticule, holdsPole, rectangle } from './geometry.mjs';

maplibre.setWorkerUrl(new URL('./maplibre/maplibre-gl-worker.mjs', import.meta.url).href);

const INK = { light: { ground: '#eef1f4', line: '#d5dbe1', text: '#5f6b76', strong: '#14202b', halo: '#ffffff' }, dark: { ground: '#11171d', line: '#27313a', text: '#8b98a5', strong: '#f2f5f8', halo: '#0b0f13' } };
const FONT = ['system-ui', 'sans-serif'];
const EDGE_PX = 9, LABEL_PX = 104, NEAR_PX = 140;
const LINE_PX = 170;
const MOST_CIRCLES = 150, WIDEST_KM = 2500;
const EMPTY = collection([]);

export class CityMap {
    /** `on` has box(name), image(box, id), cell(id), moved() and hover(text, point). */
    constructor(element, style, on) {
        this.on = on;
        this.dark = matchMedia('(prefers-color-scheme: dark)');
        this.styled = Boolean(style);
        this.data = {};
        this.map = new maplibre.Map({
            container: element, style: style ?? this.#ground(), center: [10, 30], zoom: 1, maxZoom: 23,
            attributionControl: false, dragRotate: false, pitchWithRotate: false, fadeDuration: 0,
        });
        this.map.touchZoomRotate.disableRotation();
        this.map.addControl(new maplibre.NavigationControl({ showCompass: false }), 'top-left');
        this.map.addControl(new maplibre.ScaleControl(), 'top-right');
        if (style) this.map.addControl(new maplibre.AttributionControl({ compact: true }), 'bottom-right');
        this.ready = new Promise(done => this.map.once('style.load', done)).then(() => this.#layers());
        this.dark.addEventListener('change', () => this.#again());
        this.map.on('moveend', () => { this.#lines(); on.moved(); });
        this.map.on('error', event => console.warn(event.error?.message));
        this.#clicks();
    }

    get ink() { return INK[this.dark.matches ? 'dark' : 'light']; }
    get bounds() { return this.map.getBounds().toArray().flat(); }

    #ground() {
        return { version: 8, sources: {}, layers: [{ id: 'ground', type: 'background', paint: { 'background-color': this.ink.ground } }] };
    }

    async #again() {
        if (this.styled) return;
        this.map.setStyle(this.#ground(), { diff: false });
        await new Promise(done => this.map.once('style.load', done));
        this.#layers();
        for (const [id, data] of Object.entries(this.data)) this.map.getSource(id).setData(data);
        if (this.grid) this.#zooms();
        if (this.chosen) this.choose(this.chosen);
    }

    #layers() {
        const { map, ink } = this, text = { 'text-color': ink.text, 'text-halo-color': ink.ground, 'text-halo-width': 1.5 };
        for (const id of ['graticule', 'degrees', 'grid', 'boxes', 'names', 'sequences', 'images', 'reach', 'cells', 'chosen']) {
            map.addSource(id, { type: 'geojson', data: EMPTY, ...(id === 'boxes' ? { promoteId: 'box' } : {}) });
        }
        const add = (id, type, source, paint, layout = {}, rest = {}) => map.addLayer({ id, type, source, paint, layout, ...rest });
        const hover = (yes, no) => ['case', ['boolean', ['feature-state', 'hover'], false], yes, no];
        if (!this.styled) add('graticule', 'line', 'graticule', { 'line-color': ink.line, 'line-width': 1 });
        add('grid', 'line', 'grid', { 'line-color': ink.text, 'line-width': 1, 'line-dasharray': [3, 3], 'line-opacity': 0.7 });
        add('boxes', 'fill', 'boxes', { 'fill-color': ['get', 'colour'], 'fill-opacity': 0.8 });
        add('box-edges', 'line', 'boxes', { 'line-color': ink.strong, 'line-width': hover(3, 1), 'line-opacity': hover(1, 0.45) });
        add('sequences', 'line', 'sequences', { 'line-color': ink.strong, 'line-width': 1.5, 'line-opacity': 0.55 }, { 'line-join': 'round' });
        add('images', 'circle', 'images', {
            'circle-radius': ['case', ['get', 'is_pano'], 6, 4.5], 'circle-stroke-width': 1.5, 'circle-stroke-color': ink.strong,
            'circle-color': ['case', ['get', 'registered'], '#d55e00', ink.ground],
        });
        add('reach', 'fill', 'reach', { 'fill-color': ['get', 'colour'], 'fill-opacity': 0.12, 'fill-outline-color': ink.strong });
        add('cells', 'circle', 'cells', {
            'circle-color': ['get', 'colour'],
            'circle-opacity': 0.9, 'circle-stroke-width': 1, 'circle-stroke-color': ink.strong,
        });
        add('chosen', 'line', 'chosen', { 'line-color': '#d55e00', 'line-width': 4 }, { 'line-join': 'round' }, { filter: ['!=', ['geometry-type'], 'Point'] });
        add('chosen-point', 'circle', 'chosen', { 'circle-radius': 11, 'circle-opacity': 0, 'circle-stroke-width': 3.5, 'circle-stroke-color': '#0072b2' }, {}, { filter: ['==', ['geometry-type'], 'Point'] });
        const fonts = this.styled ? {} : { 'text-font': FONT };
        if (!map.getStyle().glyphs) {
            add('box-names', 'symbol', 'names', { 'text-color': ink.strong, 'text-halo-color': ink.halo, 'text-halo-width': 1.6 }, { 'text-field': ['get', 'label'], 'text-size': 13, ...fonts, 'text-max-width': 20, 'text-line-height': 1.25, 'text-anchor': 'top-left', 'text-justify': 'left', 'text-offset': [0.5, 0.4] });
            if (!this.styled) add('degrees', 'symbol', 'degrees', text, { 'text-field': ['get', 'text'], 'text-size': 11, ...fonts, 'text-anchor': ['get', 'anchor'], 'text-offset': ['match', ['get', 'anchor'], 'right', ['literal', [-0.4, -0.6]], ['literal', [0, -0.2]]] });
        }
        this.#lines();
    }

    #set(id, data) {
        this.data[id] = data;
        this.map.getSource(id)?.setData(data);
    }

    #lines() {
        if (this.styled || !this.map.getSource('graticule')) return;
        const { lines, labels } = graticule(this.bounds, this.map.getContainer().clientWidth / LINE_PX);
        this.#set('graticule', lines);
        this.#set('degrees', labels);
    }

    #clicks() {
        const { map, on } = this;
        const at = (event, layers) => map.queryRenderedFeatures([[event.point.x - 5, event.point.y - 5], [event.point.x + 5, event.point.y + 5]], { layers: layers.filter(id => map.getLayer(id)) })[0];
        const under = event => at(event, ['images', 'cells']) ?? map.queryRenderedFeatures(event.point, { layers: ['boxes'].filter(id => map.getLayer(id)) })[0];
        map.on('click', event => {
            const found = under(event), p = found?.properties;
            if (!found) return;
            if (found.layer.id === 'images') on.image(p.box, p.image_id);
            else if (found.layer.id === 'cells') on.cell(p.cell_id);
            else on.box(p.box);
        });
        map.on('mousemove', event => {
            const found = under(event);
            map.getCanvas().style.cursor = found ? 'pointer' : '';
            this.hover(found?.properties.box);
            on.hover(found?.properties.tip, event.point);
        });
        map.on('mouseout', () => { this.hover(); on.hover(); });
    }

    /** Make the edge of a box stronger, or of none. */
    hover(box) {
        if (box === this.hovered || !this.map.getSource('boxes')) return;
        if (this.hovered) this.map.setFeatureState({ source: 'boxes', id: this.hovered }, { hover: false });
        if (box) this.map.setFeatureState({ source: 'boxes', id: box }, { hover: true });
        this.hovered = box;
    }

    /** Pixels of the side of a box at the present zoom. */
    get boxPx() {
        if (!this.grid) return 0;
        return this.grid.step[0] / 360 * 512 * 2 ** this.map.getZoom();
    }

    get near() { return this.boxPx >= NEAR_PX; }

    #zooms() {
        const zoom = px => Math.max(0, Math.log2(px * 360 / 512 / this.grid.step[0]));
        const [label, near] = [zoom(LABEL_PX), zoom(NEAR_PX)];
        if (this.map.getLayer('box-names')) this.map.setLayerZoomRange('box-names', Math.min(label, 23), 24);
        this.map.setLayerZoomRange('box-edges', Math.min(zoom(EDGE_PX), 23), 24);
        this.map.setPaintProperty('boxes', 'fill-opacity', ['interpolate', ['linear'], ['zoom'], near - 1, 0.8, near + 0.5, 0.4]);
    }

    /** Boxes of a city, coloured by a measure. */
    boxes(grid, rows, measure) {
        this.grid = grid;
        const shown = rows.map(row => {
            const at = measure.of(row), words = measure.text(row);
            return { bounds: boxBounds(grid, row.box), properties: { box: row.box, colour: measure.colours[at] ?? NOTHING, label: `${row.box}\n${words}`, tip: `${row.box}: ${words}` } };
        });
        this.#set('boxes', collection(shown.map(box => feature(rectangle(box.bounds), box.properties))));
        this.#set('names', collection(shown.map(box => feature({ type: 'Point', coordinates: [box.bounds[0], box.bounds[3]] }, box.properties))));
        const { origin: [w, s], step, rows: nr, columns: nc } = grid;
        this.#set('grid', collection([feature(rectangle([w, s, w + nc * step[0], s + nr * step[1]]))]));
        this.#zooms();
    }

    /** Images and sequences of some boxes. */
    inside(images, sequences) {
        this.#set('images', collection(images));
        this.#set('sequences', collection(sequences));
    }

    cells(rows) {
        const most = Math.sqrt(Math.max(1, ...rows.map(row => row.n_photos)));
        const colour = km => REACH.colours[REACH_KM.filter(b => km >= b).length];
        const words = row => `cell ${row.cell_id}: ${row.n_photos.toLocaleString('en')} photos, 90 % within ${distance(row.p90_km)}`;
        // The more, the smaller.
        this.map.setPaintProperty('cells', 'circle-radius', ['interpolate', ['linear'], ['get', 'size'], 0, 3, 1, Math.min(16, Math.max(4, 200 / Math.sqrt(rows.length)))]);
        // Small ones last, so that they lie on top.
        this.#set('cells', collection(rows.map(row => feature({ type: 'Point', coordinates: [row.lon, row.lat] }, { cell_id: row.cell_id, colour: colour(row.p90_km), size: Math.sqrt(row.n_photos) / most, tip: words(row) }))));
        const round = rows.filter(row => row.p90_km < WIDEST_KM && !holdsPole(row.lat, row.p90_km)).slice(0, MOST_CIRCLES);
        this.#set('reach', collection(round.map(row => feature(circle(row.lon, row.lat, row.p90_km), { colour: colour(row.p90_km) }))));
    }

    clear(...ids) { for (const id of ids) this.#set(id, EMPTY); }

    /** Bring a point into view, if it is not. */
    find(point) { if (!this.map.getBounds().contains(point)) this.map.panTo(point); }

    /** Mark a box (bounds), a point, or nothing. */
    choose(what) {
        this.chosen = what;
        const geometry = what && (what.length === 4 ? rectangle(what) : { type: 'Point', coordinates: what });
        this.#set('chosen', geometry ? collection([feature(geometry)]) : EMPTY);
    }

    /** Show bounds [w, s, e, n] clear of what lies over the map. */
    show(bounds, padding, gently = true) {
        const quiet = matchMedia('(prefers-reduced-motion: reduce)').matches;
        this.map.fitBounds([bounds.slice(0, 2), bounds.slice(2)], { padding, animate: gently && !quiet, duration: 500, maxZoom: 21 });
    }
}
