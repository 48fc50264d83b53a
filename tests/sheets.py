"Office files made by hand, so that tests need no library that writes them"
import io, zipfile


def sheet_file(sheets: dict, hidden: tuple = ()) -> bytes:
    "An Excel file of these sheets, name → rows"
    def cell(value): return f"<c><v>{value}</v></c>" if isinstance(value, (int, float)) else f'<c t="inlineStr"><is><t>{value}</t></is></c>' if value else "<c/>"
    names = list(sheets)
    entries = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"{" state=" + chr(34) + "hidden" + chr(34) if name in hidden else ""}/>' for n, name in enumerate(names, 1))
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    files = {"[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
             + "".join(f'<Override PartName="/xl/worksheets/s{n}.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/>' for n in range(1, len(names) + 1)) + "</Types>",
             "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="xl/workbook.xml"/></Relationships>',
             "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets>{entries}</sheets></workbook>',
             "xl/_rels/workbook.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">' + "".join(f'<Relationship Id="r{n}" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet" Target="worksheets/s{n}.xml"/>' for n in range(1, len(names) + 1)) + "</Relationships>"}
    for n, rows in enumerate(sheets.values(), 1):
        files[f"xl/worksheets/s{n}.xml"] = f'<worksheet xmlns="{main}"><sheetData>{"".join("<row>" + "".join(map(cell, row)) + "</row>" for row in rows)}</sheetData></worksheet>'
    with zipfile.ZipFile(out := io.BytesIO(), "w") as z:
        for name, text in files.items(): z.writestr(name, text)
    return out.getvalue()


def zipped(members: dict) -> bytes:
    "A zip archive of these members"
    with zipfile.ZipFile(out := io.BytesIO(), "w") as z:
        for name, text in members.items(): z.writestr(name, text)
    return out.getvalue()


def open_document(kind: str, body: str, styles: str = "") -> bytes:
    "An OpenDocument file: kind 'text' or 'spreadsheet'"
    names = " ".join(f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in ("office", "style", "text", "table"))
    media = f"application/vnd.oasis.opendocument.{kind}"
    manifest = f'<manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"><manifest:file-entry manifest:full-path="/" manifest:media-type="{media}"/><manifest:file-entry manifest:full-path="content.xml" manifest:media-type="text/xml"/></manifest:manifest>'
    content = f'<office:document-content {names}>{styles}<office:body><office:{kind}>{body}</office:{kind}></office:body></office:document-content>'
    return zipped({"mimetype": media, "META-INF/manifest.xml": manifest, "content.xml": content})
