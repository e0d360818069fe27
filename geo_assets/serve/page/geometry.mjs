// Shapes on the globe, in degrees, longitude first.

const EARTH_KM = 6371.0088;

/** Bounds [w, s, e, n] of a box of a city's grid by its name, r03c07: row from the south, column from the west. */
export function boxBounds(grid, name) {
    const [row, column] = name.slice(1).split('c').map(Number);
    const [west, south] = [grid.origin[0] + column * grid.step[0], grid.origin[1] + row * grid.step[1]];
    return [west, south, west + grid.step[0], south + grid.step[1]];
}

export const rectangle = ([w, s, e, n]) => ({ type: 'Polygon', coordinates: [[[w, s], [e, s], [e, n], [w, n], [w, s]]] });
export const feature = (geometry, properties = {}, id) => ({ type: 'Feature', geometry, properties, ...(id === undefined ? {} : { id }) });
export const collection = features => ({ type: 'FeatureCollection', features });

/** Names of the boxes of a grid that a view touches, or null where they are more than `most`. */
export function boxesIn(grid, [w, s, e, n], most) {
    const clamp = (v, top) => Math.min(Math.max(v, 0), top - 1);
    const [c0, c1] = [w, e].map(v => Math.floor((v - grid.origin[0]) / grid.step[0]));
    const [r0, r1] = [s, n].map(v => Math.floor((v - grid.origin[1]) / grid.step[1]));
    if (c1 < 0 || r1 < 0 || c0 >= grid.columns || r0 >= grid.rows) return [];
    const names = [], [ca, cb, ra, rb] = [clamp(c0, grid.columns), clamp(c1, grid.columns), clamp(r0, grid.rows), clamp(r1, grid.rows)];
    if ((cb - ca + 1) * (rb - ra + 1) > most) return null;
    for (let r = ra; r <= rb; r++) for (let c = ca; c <= cb; c++) names.push(`r${String(r).padStart(2, '0')}c${String(c).padStart(2, '0')}`);
    return names;
}

/** A circle on the sphere as a polygon; longitudes run on beyond the antimeridian. */
export function circle(lon, lat, km, n = 72) {
    const d = km / EARTH_KM, [f, l] = [lat, lon].map(v => v * Math.PI / 180), ring = [];
    for (let i = 0; i <= n; i++) {
        const a = 2 * Math.PI * i / n, g = Math.asin(Math.sin(f) * Math.cos(d) + Math.cos(f) * Math.sin(d) * Math.cos(a));
        const m = l + Math.atan2(Math.sin(a) * Math.sin(d) * Math.cos(f), Math.cos(d) - Math.sin(f) * Math.sin(g));
        ring.push([m * 180 / Math.PI, g * 180 / Math.PI]);
    }
    return { type: 'Polygon', coordinates: [ring] };
}

/** Whether a circle holds a pole: on this map it has no outline then. */
export const holdsPole = (lat, km) => 90 - Math.abs(lat) <= km / EARTH_KM * 180 / Math.PI;

/** Meridians and parallels through a view, at least so many as wanted, with their degrees as labels at the edges. */
export function graticule([w, s, e, n], wanted) {
    const lines = [], labels = [];
    e = Math.min(e, w + 360);
    const steps = [90, 45, 30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001, 0.00005, 0.00002, 0.00001];
    const step = steps.find(v => (e - w) / v >= wanted) ?? steps.at(-1), digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const [bottom, top] = [Math.max(s, -85), Math.min(n, 85)];
    for (let i = Math.ceil(w / step); i * step <= e; i++) {
        const x = i * step, shown = ((x + 540) % 360 + 360) % 360 - 180;
        lines.push(feature({ type: 'LineString', coordinates: [[x, bottom], [x, top]] }));
        labels.push(feature({ type: 'Point', coordinates: [x, bottom] }, { text: `${Math.abs(shown).toFixed(digits)}°${shown < 0 ? 'W' : 'E'}`, anchor: 'bottom' }));
    }
    for (let i = Math.ceil(bottom / step); i * step <= top; i++) {
        lines.push(feature({ type: 'LineString', coordinates: [[w, i * step], [e, i * step]] }));
        labels.push(feature({ type: 'Point', coordinates: [e, i * step] }, { text: `${Math.abs(i * step).toFixed(digits)}°${i < 0 ? 'S' : 'N'}`, anchor: 'right' }));
    }
    return { lines: collection(lines), labels: collection(labels) };
}
