import math
from tests.operations.test_settings import NUMBERS, having, at, refusal, changed
def test_all():
    bad=[]
    for path in NUMBERS:
        if path[0]=="p1": continue
        for value in [-1, 10**400, math.inf, math.nan, True, "5", None, [], {}]:
            for config in having(path)[:1] if isinstance(having(path),list) else having(path):
                if value is None and at(config,path) is None: continue
                try: said=refusal(changed(config,path,value))
                except Exception as e: bad.append((path,value,repr(e)[:80])); continue
                if said is not None:
                    if str(path[0]) not in said: bad.append((path,value,"unnamed"))
                    continue
                if value is None and path[:2] == ("streaming", "points"): continue
                if not (value in (True,"5",None) and {"architecture", "arguments", "policies", "max_bytes"} & set(path)): bad.append((path,value))
    assert not bad, "\n".join(sorted({str(b) for b in bad}))
