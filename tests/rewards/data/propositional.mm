$( Propositional calculus after Lukasiewicz: three axioms and modus ponens. Written for the tests; no rights reserved. $)

$c ( ) -> -. wff |- $.
$v ph ps ch th $.
wph $f wff ph $.
wps $f wff ps $.
wch $f wff ch $.
wth $f wff th $.

wn $a wff -. ph $.
wi $a wff ( ph -> ps ) $.
ax-1 $a |- ( ph -> ( ps -> ph ) ) $.
ax-2 $a |- ( ( ph -> ( ps -> ch ) ) -> ( ( ph -> ps ) -> ( ph -> ch ) ) ) $.
ax-3 $a |- ( ( -. ph -> -. ps ) -> ( ps -> ph ) ) $.
${
  min $e |- ph $.
  maj $e |- ( ph -> ps ) $.
  ax-mp $a |- ps $.
$}

${
  a1i.1 $e |- ph $.
  a1i $p |- ( ps -> ph ) $= wph wps wph wi a1i.1 wph wps ax-1 ax-mp $.
$}
${
  a2i.1 $e |- ( ph -> ( ps -> ch ) ) $.
  a2i $p |- ( ( ph -> ps ) -> ( ph -> ch ) ) $=
    wph wps wch wi wi wph wps wi wph wch wi wi a2i.1 wph wps wch ax-2 ax-mp $.
$}
${
  syl.1 $e |- ( ph -> ps ) $.
  syl.2 $e |- ( ps -> ch ) $.
  syl $p |- ( ph -> ch ) $=
    wph wps wi wph wch wi syl.1 wph wps wch wps wch wi wph syl.2 a1i a2i ax-mp $.
$}
id $p |- ( ph -> ph ) $=
  wph wph wph wi wi wph wph wi wph wph ax-1 wph wph wph wi wph wph wph wph wi ax-1 a2i ax-mp $.
$( From a contradiction anything follows: -. ph -> ( -. ps -> -. ph ) -> ( ph -> ps ). $)
pm2.21 $p |- ( -. ph -> ( ph -> ps ) ) $=
  ( wn wi ax-1 ax-3 syl ) ACZBCZHDABDHIEBAFG $.
$( A doubled implication, to have expressions that a compressed proof says once. $)
twice $p |- ( ( ph -> ph ) -> ( ( ph -> ph ) -> ( ph -> ph ) ) ) $=
  ( wi ax-1 ) AABZDC $.
