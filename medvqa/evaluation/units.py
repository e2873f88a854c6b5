"""Units of measurement: unit -> (dimension, scale), and the pattern that matches any of them."""

import re

# Numbers of one dimension are compared at one scale.
UNITS: dict[str, tuple[str, float]] = {
    unit: (dimension, scale)
    for dimension, scale, units in (
        ("length", 1e-6, "nm"),
        ("length", 1e-3, "um μm micron microns micrometer micrometers"),
        ("length", 1.0, "mm millimeter millimeters millimetre millimetres"),
        ("length", 10.0, "cm centimeter centimeters centimetre centimetres"),
        ("length", 1e3, "m meter meters metre metres"),
        ("length", 1e6, "km"),
        ("length", 25.4, "inch inches"),
        ("area", 1e-6, "um2 μm2"),
        ("area", 1.0, "mm2"),
        ("area", 100.0, "cm2"),
        ("area", 1e6, "m2"),
        ("mass", 1e-3, "ug μg mcg microgram micrograms"),
        ("mass", 1.0, "mg milligram milligrams"),
        ("mass", 1e3, "g gram grams"),
        ("mass", 1e6, "kg kilogram kilograms"),
        ("volume", 1e-3, "mm3"),
        ("volume", 1.0, "ml cc cm3 milliliter milliliters millilitre millilitres"),
        ("volume", 1e3, "l liter liters litre litres"),
        ("volume", 1e6, "m3"),
        ("time", 1e-3, "ms msec"),
        ("time", 1.0, "s sec secs second seconds"),
        ("time", 60.0, "min mins minute minutes"),
        ("time", 3600.0, "h hr hrs hour hours"),
        ("frequency", 1.0, "hz"),
        ("frequency", 1e3, "khz"),
        ("frequency", 1e6, "mhz"),
        ("rate", 1.0, "bpm"),
        ("field", 1.0, "t tesla"),
        ("voltage", 1.0, "kv kvp"),
        ("current", 1.0, "ma"),
        ("charge", 1.0, "mas"),
        ("share", 1.0, "% percent"),
        ("pressure", 1.0, "mmhg"),
        ("attenuation", 1.0, "hu"),
        ("celsius", 1.0, "°c"),
        ("fahrenheit", 1.0, "°f"),
        ("", 1.0, "°"),  # an angle or a temperature: the figures compare
    )
    for unit in units.split()
}
UNIT = "|".join(map(re.escape, UNITS))
