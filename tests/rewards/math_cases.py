r"""Cases of our own for the math verifier: rule -> (reference, answers that are right, answers that are wrong).

Every line follows from the rule in its key; where the arithmetic is not plain to see it stands in a comment.
"""

from __future__ import annotations

Case = tuple[str, list[str], list[str]]

CASES: dict[str, list[Case]] = {
    "separators group digits in threes and nothing else": [
        ("1234567", ["1{,}234{,}567", r"1\,234\,567", "1 234 567", r"1,\!234,\!567", "1,234,567.0"], ["1,23,4567"]),
        ("12000", ["12,000.00", r"\text{12,000}", "12\u202f000"], ["12.000", "12,00"]),
        ("123", [], ["1,23", "1 23", "12 3"]),
        ("2, 3", ["3,2"], ["23", "2.3"]),
        ("81, 256", ["81,256", "256, 81"], ["81256"]),  # a list, as its spaces show
        ("f(10)=1,234", ["1234", "1,234"], ["1", "234"]),
        ("5000000", ["5 million", r"\$5\text{ million}", r"5\text{ million dollars}"], ["5", r"5\text{ thousand}"]),
        (r"5\text{ million}", ["5000000", r"5000\text{ thousand}", r"0.005\text{ billion}"], ["5", r"5\text{ billion}"]),
        ("8", [], [r"8\text{ thousand}", r"8\text{ hundred people}", "8 dozen million"]),
    ],
    "rationals are exact in every spelling": [
        (r"\frac{1}{3}", ["1/3", r"\dfrac13", r"0.\overline{3}", r"{1 \over 3}", r"\frac{-1}{-3}"], ["0.3333", "0.333333333"]),
        (r"\frac{5}{2}", ["2.5", r"2\frac{1}{2}", "2 1/2", "2½", r"\frac{10}{4}"], [r"\frac{2}{5}", r"\frac{21}{2}"]),
        ("-\\frac{7}{3}", [r"-2\frac13", r"\frac{7}{-3}", "–7/3"], [r"-1\frac23", "7/3"]),
        ("5", ["+5", "05", "(5)", "5.", "5.000", r"\text{5}", "**5**", "5\u200b", "５"], ["-5", "0.5", "5.0001", "5/1/2"]),
        ("1000000", ["10^6", "1e6", r"1.0\times10^{6}"], ["10^5", "106", "999999", "1000001"]),
        ("0.1", ["1/10", ".1", "10^{-1}"], ["0.1000000001", "0.0999999999999999"]),
        (r"\frac{1}{1000!}", [], ["0", r"\frac{1}{1001!}"]),  # 1/1000! is 1e-2568: no float sees it
        (r"\frac{7}{11}", [r"0.\overline{63}", r"0.\dot{6}\dot{3}", r"0.6\overline{36}", r"7\over11"], ["0.63", r"0.\overline{36}"]),
        (r"\frac{11}{4}", [r"2\frac34", r"2{\frac34}"], [r"2(\frac34)", r"2\cdot\frac34", r"2\frac43"]),  # 2(3/4) is 3/2
        ("1500", ["1.5 x 10^3", "1.5×10³", "1.5E+3"], ["1.5e", "15e3"]),
        (r"\binom{10}{3}", ["120", r"\frac{10!}{3!7!}"], [r"\binom{10}{4}"]),
        ("-4", ["{-}4", "- 4"], ["--4", "4-"]),
        ("7", [r"\color{red}{7}", r"\underline{7}", r"{\large 7}", "= 7"], ["7+", "--7", "{" * 400 + "7" + "}" * 400]),
        ("2^{100}", ["1267650600228229401496703205376"], ["1267650600228229401496703205377"]),
    ],
    "a number without a finite decimal takes twelve digits, right to the last place": [
        (r"\frac13", ["0.333333333333", "0.333333333334"], ["0.33333333333", "0.333333333335"]),  # 12 digits, 11; 1.7 places off
        (r"\pi", ["3.14159265359", "3.14159265358"], ["3.1415926536", "3.14159265355"]),  # 3.141592653589793
    ],
    "a percent sign is worth 1/100": [
        ("-25", [r"-25\%"], [r"25\%"]),
        (r"50\%", ["50", "0.5", "50%", "50 percent", r"\frac12", r"50\text{ percent}"], ["5", "500", "0.005", r"0.5\%"]),
        ("0.5", [r"50\%"], ["50", r"0.5\%"]),
        ("500", [], ["5", r"5\%"]),
        (r"66\frac23\%", [r"\frac{200}{3}", r"\frac23", r"66.\overline{6}\%"], ["66.67", "67"]),
        (r"40\%", [r"\text{40 percent}", r"40\mathrm{\%}", "40 pct"], [r"\$40", r"40\text{ cm}", r"0.4\%"]),
        (r"\$18", [], [r"18\%"]),
    ],
    "a missing unit is fine, a contradicting one is not": [
        (r"5\text{ m}", ["5", "5 m", r"5\,\mathrm{m}", r"500\text{ cm}", "5 meters"], [r"5\text{ cm}", r"5\text{ s}", "500"]),
        (r"12\text{ ft}^2", [r"12\text{ square feet}", "12"], [r"12\text{ ft}", r"12\text{ m}^2"]),
        (r"30\text{ mph}", [r"30\text{ miles per hour}", r"30\text{ miles/hour}"], [r"30\text{ km/h}"]),
        (r"10\text{ m/s}", [r"10\ \mathrm{m\,s^{-1}}", r"36\text{ km/h}"], [r"10\text{ m}"]),  # 36000 m in 3600 s
        (r"\$5", ["5", r"5\text{ dollars}", r"500\text{ cents}", r"\$5.00"], [r"5\text{ euros}", r"\$50"]),
        (r"36\pi", [r"36\pi\text{ cm}^2"], ["36"]),
        (r"20^\circ", ["20", r"20\text{ degrees}", "20°"], [r"20\text{ radians}", r"2^\circ"]),
        ("10", [r"10\text{ apples}"], [r"10\text{ or }11", r"10\text{ is wrong, }11"]),
        ("42", ["42 apples", "42 pounds of flour", "42 eggs per day", r"\text{42 apples}"], ["42 x", "42 xyz", "42 or so", "42 to 43"]),
        (r"60\text{ mph}", [r"60\frac{\text{miles}}{\text{hour}}", r"1\text{ mile per minute}"], [r"60\text{ miles}"]),
        (r"9.8\text{ m/s}^2", [r"9.8\ \frac{\text{m}}{\text{s}^2}", r"9.8\text{ m s}^{-2}"], [r"9.8\text{ m/s}"]),
        ("$18$", [r"18\$", r"US\$18", "USD 18", "18€"], ["1$8"]),
        (r"1\text{ km}", [r"1000\text{ m}", r"10000\text{ dm}", r"1000000\text{ mm}"], [r"100\text{ m}"]),
        (r"1\text{ mile}", [r"1760\text{ yards}", r"5280\text{ feet}", r"63360\text{ inches}", r"1609.344\text{ m}"], [r"1\text{ km}"]),
        (r"1\text{ week}", [r"7\text{ days}", r"168\text{ hours}", r"10080\text{ minutes}"], [r"5\text{ days}"]),
        (r"2\text{ s}", [r"2000\text{ ms}"], [r"2\text{ min}"]),
        (r"1\text{ year}", [r"12\text{ months}"], [r"52\text{ weeks}", r"365\text{ days}"]),  # neither is exact
        (r"1\text{ lb}", [r"16\text{ oz}", r"453.59237\text{ g}"], [r"12\text{ oz}"]),
        (r"1\text{ kg}", [r"1000\text{ g}", r"1000000\text{ mg}"], [r"100\text{ g}"]),
        (r"1\text{ gallon}", [r"4\text{ quarts}", r"8\text{ pints}", r"16\text{ cups}"], [r"4\text{ liters}"]),
        (r"3\text{ liters}", [r"3000\text{ ml}"], [r"300\text{ ml}"]),
        ("8", [], [r"8\text{ I think}", r"8\text{ assuming so}", r"8\text{ at least}", r"\text{about }8", "~8"]),
    ],
    "a label unwraps, and every other side of a chain is true": [
        (r"\frac{S_1}{S_2}=\frac{2}{3}", ["2/3", r"\frac{S_1}{S_2}=2/3"], ["3/2", r"\frac{S_1}{S_2}", r"\frac{S_2}{S_1}=\frac23"]),
        (r"AB/CD=4", ["4", "AB/CD = 4"], ["1/4", "AB=4"]),
        (r"\frac{y}{x}=\frac{b}{a}", [r"\frac{y}{x}=\frac{b}{a}"], [r"\frac{b}{a}"]),  # a line
        ("5", ["x = 5", "5 = x", "f(2)=5", r"\angle ABC = 5^\circ", r"\text{Area} = 5", "a+b=5", "2+3=5"], ["x=4", "2+4=5", "5=6", "x+2=5"]),
        ("x=5", ["5", "5=x"], ["y=5", "x=6"]),
        ("y=2x+3", ["2x+3", "y=3+2x", "2x-y=-3", "2y=4x+6"], ["y=2x-3", "x=2y+3"]),
        ("x+y+z=0", ["2x+2y+2z=0"], ["0", "x+y+z=1"]),
        ("(1,2)", ["x=1,y=2", "y=2, x=1", "(x,y)=(1,2)"], ["x=2,y=1"]),
        ("x=1, y=2", ["(x,y)=(1,2)", r"x=1\text{ and }y=2"], ["(x,y)=(2,1)", "x=1"]),
        ("14", [r"14=7\cdot2", r"\therefore x=14", r"\bar{x}=14", r"\vec{a}\cdot\vec{b}=14", r"\frac{m}{n}=14", r"m\angle B=14^\circ", "x&=14",
                r"\text{Area of } ABC=14", r"\text{The total is }14", r"\text{Total: }14"],
         [r"14=7\cdot3", "2x=14", "|x|=14", r"\text{not }x=14", "(x,y)=14", r"\text{The answer is not }14", r"\text{I guess it is }14", "x=14=15"]),
        ("f(x)=x^2-3x", ["y=x^2-3x", "x(x-3)"], ["g(x)=x^2-3x", "f(x)=x^2"]),
    ],
    "sets of numbers are equal as sets": [
        ("(-\\infty,3]", [r"x\le 3", r"3\ge x", "x≤3", r"x\in(-\infty,3]"], ["x<3", r"x\ge3", r"(-\infty,3)"]),
        ("[-3,2]", [r"-3\le x\le 2", r"[-3,2)\cup\{2\}", r"[-3,0]\cup[0,2]"], ["(-3,2)", r"-3<x\le 2", r"[-3,0)\cup(0,2]"]),
        (r"(-\infty,2)\cup(2,\infty)", [r"x\ne2", r"\mathbb{R}\setminus\{2\}", r"x<2\text{ or }x>2"], [r"\mathbb{R}", "x=2"]),
        ("x^2+y<4", ["4>x^2+y", "2x^2+2y<8"], ["x^2+y>4", r"x^2+y\le4"]),
        (r"x^2+y\ge4", [r"4\le x^2+y"], [r"x^2+y\le4"]),
        (r"x\ne y", [r"y\ne x", r"x-y\ne0"], ["x=y", r"x\ne-y"]),  # of \ne alone a negative factor turns nothing
        ("1<x<2", [r"x>1\text{ and }x<2", "x>1, x<2", r"|x-1.5|<0.5"], [r"x>1\text{ or }x<2", "x>1", ", and"]),
        (r"(-\infty,-1)\cup(1,\infty)", ["|x|>1", "x<-1, x>1", r"\mathbb{R}-[-1,1]", r"(-\infty,-1)U(1,\infty)"], ["|x|<1", r"|x|\ge1", r"x<-1\text{ and }x>1", r"x<-1\text{ or }y>1"]),
        ("x>5", [], ["x>3, x>5", r"x>5\text{ or }x>6", "y>5"]),  # a second guess that adds nothing; another variable
        (r"\{1\}\cup[2,3]", [r"x=1\text{ or }2\le x\le3", r"[1,1]\cup[2,3]"], ["[1,3]"]),
        (r"[0,2)\cup(2,5]", [r"[0,5]\setminus\{2\}"], [r"\mathbb{R}\setminus\{2\}", "[0,5]"]),
        ("-3<x<1", ["|x+1|<2", "2>|x+1|"], ["|x-1|<2"]),  # from -1 - 2 to -1 + 2
        (r"(-\infty,\infty)", [r"\text{All real numbers}", r"\mathbb{R}", r"-\infty<x<\infty"], [r"\mathbb{Q}", r"\text{no real numbers}"]),
    ],
    "sets are unordered, tuples ordered, and nothing may be missing": [
        (r"\{1,2,3\}", [r"\{3,2,1\}", "1, 2, 3", r"1, 2\text{ and }3"], [r"\{1,2\}", r"\{1,2,3,4\}", "(1,2,3)"]),
        ("(1,2)", [r"\left(1, 2\right)", r"\langle 1,2\rangle"], ["(2,1)", "[1,2]", r"\{1,2\}", "(1,2,0)"]),
        (r"\{(1,2),(3,4)\}", ["(3,4), (1,2)"], ["(2,1),(4,3)", "(1,2)"]),
        ("1, 1, 2", ["2, 1, 1"], ["1, 2, 2", "1, 2"]),
        (r"\pm 2", ["2,-2", r"x=2\text{ or }x=-2"], ["2", "-2"]),
        (r"1\pm\sqrt2", [r"1+\sqrt2, 1-\sqrt2"], [r"1+\sqrt2"]),
        (r"\emptyset", [r"\{\}", r"\text{no solution}", "∅"], ["0", r"\{0\}"]),
        (r"\emptyset", [r"\text{There is no real solution}"], [r"\text{one solution}"]),
        (r"\{1,2\}", [r"\{1,1,2\}", r"x\in\{1,2\}", "{1,2}", "$1$ and $2$"], ["1,1,2", "x_1=1"]),
        ("(1,0),(-1,0)", [r"(\pm1,0)", r"(x,y)\in\{(1,0),(-1,0)\}"], [r"(0,\pm1)", "(1,0)"]),
        (r"\begin{pmatrix}2&0\\0&2\end{pmatrix}", [r"2\begin{pmatrix}1&0\\0&1\end{pmatrix}", "[[2,0],[0,2]]", r"\begin{pmatrix}2&0\cr0&2\end{pmatrix}"],
         [r"3\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"\begin{pmatrix}2&0\\0&2\end{pmatrix}^2", r"-\begin{pmatrix}2&0\\0&2\end{pmatrix}", "[2,0,0,2]"]),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", [r"\begin{bmatrix}1\\2\\\end{bmatrix}", r"\left[\begin{array}{c}1\\[2pt]2\end{array}\right]", "(1,2)"],
         [r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", r"\begin{matrix}1\\2\end{pmatrix}", "1"]),
    ],
    "words are compared as words": [
        ("B", ["(B)", r"\text{B}", r"\textbf{(B) }7", "B."], ["C", "A or B", "AB", "b"]),
        ("B", [r"\text{Option B}", r"\text{B. }42", "B: 42"], [r"\text{(B) or (C)}", r"\text{(B) is wrong, (C) is right}", "(B) C", "B^2", r"\text{not B}"]),
        (r"\text{A,B,E}", ["B, A, E", r"\text{A, B, and E}"], ["A,B", r"\text{A, B, C}"]),
        (r"\text{ellipse}", [r"\text{An ellipse}"], [r"\text{eclipse}", r"\text{an ellipse or a circle}"]),
        ("red", ["Red", r"\text{red}"], ["der"]),
        (r"\text{Evelyn}", ["evelyn", "Evelyn."], [r"\text{Evelyn and Bob}", r"\text{Bob}"]),
        ("BCA", ["BCA"], ["ABC"]),  # an ordering is no product
        (r"\text{no solution}", [r"\text{No solution}"], ["0"]),
        (r"\text{four}", ["4"], ["5"]),
    ],
    "expressions are equal if they have equal values everywhere": [
        (r"2\sqrt{3}", [r"\sqrt{12}", r"\frac{6}{\sqrt3}"], [r"3\sqrt2", "3.4641"]),
        (r"\frac{x+1}{2}", [r"\frac12x+\frac12", r"\frac12(x+1)"], [r"\frac{x}{2}+1", r"\frac{t+1}{2}"]),
        (r"\sin 2x", [r"2\sin x\cos x"], [r"2\sin x", r"\sin x^2"]),
        (r"\ln 8", [r"3\ln2"], [r"2\ln3"]),
        (r"|x|", [r"\sqrt{x^2}"], ["x"]),  # they differ for negative x
        (r"\lceil x\rceil", [r"-\lfloor-x\rfloor"], [r"\lfloor x\rfloor+1"]),  # they differ at the integers
        (r"1-\frac{1}{\mathrm{e}}", [r"1-e^{-1}", r"\frac{e-1}{e}"], [r"1+\frac1e", "0.632"]),
        (r"\ln 8", [r"\operatorname{ln}8", "3 ln 2", "ln(8)"], [r"2\ln3"]),
        (r"2^{2/3}", [r"\sqrt[3]{4}", "∛4"], [r"\sqrt4", "1.587"]),
        (r"\gcd(a,b)", [r"\gcd(a,b)"], ["1", "ab"]),  # sympy says 1 for two symbols
        (r"\ln(xy)", [r"\ln x+\ln y"], [r"\ln x\ln y"]),  # the real domain is x, y > 0
        (r"\frac{a}{b}c", [r"\frac{ac}{b}"], [r"\frac ab"]),
        ("x_1", [], ["x_2", "x"]),
        ("a^2b", ["ba^2"], ["ab^2", "A^2b"]),
        ("i", [r"\sqrt{-1}"], ["-i", "1"]),
        (r"e^{-100}", [r"\frac{1}{e^{100}}"], ["0", "e^{-101}"]),
        (r"\infty", [r"+\infty", "∞"], [r"-\infty", "5"]),
    ],
    "the question is not its answer": [
        (r"\frac13", [], [r"\int_0^1x^2\,dx", r"\frac12-\frac16"]),
        ("55", [], [r"\sum_{k=1}^{10}k", r"5\cdot 11", "5(11)"]),
        ("24", [], ["4!", r"\text{lcm}(8,12)", r"\begin{vmatrix}5&1\\1&5\end{vmatrix}"]),
        (r"-\frac12", [], [r"\cos 120^\circ", r"\lim_{x\to0}x"]),
        ("2x", [], [r"\frac{d}{dx}x^2"]),
    ],
    "bases, times and ratios are compared as written": [
        ("101_2", ["101_{2}", "101"], ["101_3", "5", "110_2"]),
        ("3:30", ["3:30", "03:30", r"3:30\text{ PM}"], ["3:03", "7:00"]),
        (r"8:30\text{ am}", ["8:30", "8:30 a.m."], ["8:30 PM"]),
        ("4:15", [], ["8:30", r"\frac{4}{15}"]),
        ("3:4", ["3 to 4", r"3\text{ to }4", "3{:}4"], ["4:3", "6:8", "3/4"]),
        ("1010_2", [r"1010_{(2)}", r"1010_{\text{two}}", r"1010\text{ base }2"], ["10", r"1010\text{ base }3"]),
        ("11:59", [r"\text{11:59 PM}"], ["11:95"]),
    ],
    "a hedge is wrong": [
        ("5", [], ["4, 5", r"5\pm1", "4<x<6", r"5\approx6", "5?", r"\text{5 or 6}", r"x\in\mathbb{R}", "n", "5...", "5;6", "max(5,4)", r"\frac{5}{0}", "0/0",
                   r"5\text{ or so}", r"\infty-\infty", "1e400", "5'", "5$6", "x5"]),
        ("13", [], ["1'3", "1 3", "1$3", "1\\\\3"]),
        (r"\frac{7}{8}", [], [r"\frac{7}{8}1", r"\frac{7}{8", r"]\frac78", r"\frac78\foo"]),  # what math-verify drops
    ],
    "agreement in many digits is not equality": [
        (r"\sqrt{10^{80}+1}", [r"\sqrt{1+10^{80}}"], ["10^{40}"]),  # they differ by 5e-81 of themselves
        (r"e^{\pi\sqrt{163}}", [r"(e^\pi)^{\sqrt{163}}"], ["262537412640768744"]),  # by 3e-30
        (r"\cos(10^{-15})", [r"\cos(-10^{-15})"], ["1"]),
        (r"\tanh(60)", [], ["1"]),
        (r"\ln(e^{200}+1)", [r"\ln(1+e^{200})"], ["200"]),
        ("[0,10^{30}]", [r"0\le x\le10^{30}"], ["[0,10^{30}+1]"]),
        (r"x<\sqrt{10^{50}+1}", [r"\sqrt{10^{50}+1}>x"], ["x<10^{25}"]),
        ("x+y=10^{30}", ["y=10^{30}-x", r"2x+2y=2\cdot10^{30}"], ["x+y=10^{30}+1"]),
        ("x+10^{-40}", ["10^{-40}+x"], ["x"]),
        (r"\sqrt{10^{100}+1}-10^{50}", [r"\frac{1}{\sqrt{10^{100}+1}+10^{50}}"], ["0", r"\frac{1}{2\cdot10^{50}}"]),
        (r"\sin(\pi+10^{-30})", [r"-\sin(10^{-30})"], ["0", "-10^{-30}"]),
        (r"\frac{1}{(\sqrt2)^2-2}", [], ["5", r"\sqrt2"]),  # no value, but for rounding
        (r"2^{500}\sqrt{3}", [r"2^{499}\sqrt{12}"], [r"2^{499}\sqrt{3}"]),
    ],
    "roots and logarithms of letters are compared where they are real": [
        (r"\sqrt{ab}", [r"\sqrt a\sqrt b"], [r"\sqrt a+\sqrt b"]),
        (r"\sqrt{\frac{2E}{k}}", [r"\frac{\sqrt{2Ek}}{k}", r"\frac{\sqrt{2E}}{\sqrt k}"], [r"\sqrt{2Ek}"]),  # lengths are positive
        ("x^{3/2}", [r"x\sqrt x", r"\sqrt{x^3}", r"\sqrt[4]{x^6}"], ["x^{2/3}"]),
        (r"\ln\frac pq", [r"\ln p-\ln q"], [r"\ln q-\ln p"]),
        (r"\sqrt{x^2}", ["|x|"], ["x"]),  # real for negative x too
        (r"\sqrt{x^2y}", [r"|x|\sqrt y"], [r"x\sqrt y"]),
        (r"\sqrt{x-9}\sqrt{x-7}", [r"\sqrt{(x-9)(x-7)}"], [r"\sqrt{x-9}+\sqrt{x-7}"]),
        (r"i\sqrt{3}", [r"\sqrt{-3}"], [r"\sqrt3"]),
    ],
    "a letter before brackets with one value in them is a function": [
        ("f(3)", ["f(3)"], ["3f", "3", "f"]),
        ("f(x+1)", ["f(1+x)"], ["f(x)+1", "xf+f", "f(x)+f(1)"]),
        ("g(f(2))", ["g(f(2))"], ["f(g(2))", "2fg"]),
        ("5", ["f(g(1))=5", "P(A)=5", r"\mu(0)=5"], ["f(0)", "f(5)"]),  # as a label
        ("f(x)+f(-x)=0", ["f(-x)=-f(x)"], ["f(x)=0", "f(x)-f(-x)=0"]),
        ("f^{-1}(2)", ["f^{-1}(2)"], [r"\frac{1}{f(2)}", r"\frac{2}{f}"]),
        ("f(x,y)", ["f(x,y)"], ["f(y,x)"]),
        ("Q(0)e^{-kt}", ["e^{-kt}Q(0)", r"\frac{Q(0)}{e^{kt}}"], ["0", "Q(1)e^{-kt}"]),
        (r"\phi(0)", [r"\phi(0)"], ["0"]),
        ("kN(0)", ["N(0)k"], ["0", "kN"]),
        ("S(n)-S(n-1)", ["-S(n-1)+S(n)"], ["S", "S(1)"]),  # a function throughout
        ("F(b)-F(a)", ["-F(a)+F(b)"], ["F(a)-F(b)", "F(b-a)", "Fb-Fa"]),
        ("n(n+1)/2", [r"\frac{n^2+n}{2}", r"\frac12n(n+1)"], ["n"]),  # a product
        ("P(1+r)^n", ["P(r+1)^n"], ["P+r"]),
        ("h(b_1+b_2)/2", [r"\frac{h(b_2+b_1)}{2}"], ["h(b_1)/2"]),
    ],
    "powers side by side are a product": [
        (r"2^5\cdot 3^4\cdot 11", ["2^5 3^4 11", "2^{5}3^{4}11", "3^4 2^5 11"], ["2^5 3^4", "2^4 3^5 11"]),
        (r"2^3\cdot5^2", ["5^2 2^3", "200"], ["2^35^2", "2 5 2"]),
    ],
    "about is a value of its own, and a name is none": [
        (r"\sqrt{7}\approx 2.646", [r"\sqrt7", "2.646", r"\approx2.646", r"\sqrt{7}\approx2.646", r"x=\sqrt7\approx2.646"],
         ["2.65", r"\sqrt7\approx2.65", r"\sqrt7\approx3", "x"]),
        (r"\cos(2)\approx -0.416", [r"\cos 2", "-0.416", r"\cos2\approx-0.416"], ["-0.42", r"\sin2", r"\cos(2)\approx-0.42"]),
        (r"r\approx 0.4142", ["0.4142", r"r\approx0.4142", "r=0.4142"], ["r", "r=0.41", r"r\approx0.41"]),
        (r"\frac{5}{3}\text{ cm}\approx 1.67 cm", ["1.67", r"\frac53", r"1.67\text{ cm}"], ["1.66"]),
        (r"2x\approx 3.1", ["3.1"], ["2x", "x", "2"]),
        (r"\frac{v^2}{g}\approx 0.1v^2", [r"\frac{v^2}{g}", r"\frac{v^2}{10}"], ["v", "0.1"]),
        (r"x\approx 1.31\text{ or }x\approx 2.2", ["1.31, 2.2", r"x\approx2.2, x\approx1.31"], ["2.2", "1.31", "1.31, x", "1.3, 2.2"]),
        (r"\pm\sqrt{2}\approx\pm 1.41", [r"\pm\sqrt2", "1.41, -1.41"], [r"\sqrt2", "1.41"]),
        (r"A \approx 78.5\text{ cm}^2", ["78.5", r"78.5\text{ cm}^2"], ["A", r"78.5\text{ m}^2"]),
    ],
    "relations may be written in ASCII": [
        (r"x\ge 2", ["x>=2", "2<=x", "[2, infinity)"], ["x<=2", "x>2", "2>=x"]),
        (r"a\le b<c", ["a<=b<c"], ["a<b<c", "a=<b<=c"]),
        (r"y\ne 3", ["y!=3", "y != 3"], ["y=3"]),
        ("120", ["5!=120"], ["5!=121"]),  # a factorial, and no relation
        ("-2<=t<4", [r"-2\le t<4", "[-2,4)"], ["-2<t<4"]),
    ],
    "a numeral keeps its base, after a point too": [
        ("0.21_3", ["0.21_{3}", "0.21"], ["0.21_4", "0.21_{10}", "0.12_3"]),
        ("-1.01_2", ["-1.01_{2}"], ["1.01_2", "-1.01_3"]),
        ("B4_{12}", ["b4_{12}", "B4", "B4 (base 12)"], ["B4_{13}", "B5_{12}"]),
        ("FF_{16}", ["ff_{16}", "FF"], ["FE_{16}", "FF_{17}"]),
        ("257_8", ["257 (base 8)", r"257_{\text{eight}}"], ["257_9", "175"]),
        ("a_1", ["a_{1}"], ["a_2", "a"]),  # a name
    ],
    "one choice, and nothing beside it but its own text": [
        ("C", ["C: the set of all reals", "C) $x=3$", r"\text{(C) } 5", "C. A circle", "C. 3 or 4", "C. Both 2 and 3"],
         ["C. A, B", "C. D", "C. d", "C: yes, D: no", "C. 4, D. 5", "(C), 12", "C also D", "C) or D", "C. True D. False", "A. C", "C: see A.", "C; D"]),
    ],
    "letters of a formula are no units": [
        (r"m \cdot v", ["mv", "v m"], ["m"]),
        ("k/s", [r"\frac ks"], ["k"]),
        (r"\frac{3}{h}", ["3/h"], ["3", r"3\cdot h"]),
        ("3 g h", ["3gh", r"3\cdot g\cdot h"], ["3"]),
        ("5mg", ["5gm", r"5\cdot m\cdot g"], ["5"]),
        (r"2\pi hr", [r"2\pi rh"], [r"2\pi"]),
        ("1/m^2", [r"\frac1{m^2}", "m^{-2}"], ["1"]),
        ("5 cm", ["5", r"5\text{ cm}", "5cm"], ["5 m", "6"]),
        ("10 m", [r"10\text{ meters}", "1000 cm", "10 m", r"10\cdot m"], [r"10\text{ cm}", r"10\text{ apples}", "10m^2"]),
        ("9.8 m/s^2", ["9.8", r"9.8\text{ m/s}^2"], ["9.8 m/s"]),
        ("60 km/h", ["60"], ["60 m"]),
        (r"30\text{ min}", ["0.5 h"], ["30 s", "30/h"]),  # a letter is a unit beside a reference that has one
    ],
    "words that change the number are no units and no labels": [
        ("7", ["7 squares", r"7\text{ tents}", r"7\text{ more apples}", r"\text{The sum of the digits is }7", r"\text{side of the square: }7"],
         [rf"7\text{{ {words}}}" for words in
          ["squared", "cubed", "dozen", "halves", "fifths", "hundreds", "tens", "times two", "plus one", "tripled", "quartered", "inverse", "thousands", "factorial", "mod three", "over two", "less one", "quarters"]]
         + [rf"\text{{{words} }}7" for words in
            ["half of", "minus", "twice", "half of:", "the inverse is", "three times the answer is", "the square root of the answer is", "a third of the result is"]]),
        ("5 dozen", ["5", "5 dozen"], ["5 tenths"]),
        ("20 cm squared", [r"20\text{ cm}^2", "20"], [r"20\text{ cm}"]),
    ],
    "units and words in other scripts": [
        ("8", ["8个", "8元", "8 人", r"8\text{个}", "8米", "8平方米", "8 см", "8 Ω", "8 μm", "8㎡", "8개", "8 mètres", "8 quả táo"],
         ["8万", "8千", "8或9", "约8", "8多", "8半", "8以上", "9个", "8打"]),
        ("80000", ["8万", "8万元"], ["8"]),
        (r"8\text{ m}", ["8米", "800厘米", "8 м"], ["8厘米", "8千克", "8 см"]),
        ("8平方米", ["8", r"8\text{ m}^2", "8㎡"], ["8米", "9"]),
        ("3或5", ["3, 5", "5或3", r"3\text{ or }5"], ["3", "5"]),
        ("小明", ["小明", r"\text{小明}"], ["小红"]),
        ("José", ["José", "josé"], ["Joseph"]),
    ],
    "signs and brackets around a part of a reference": [
        ("14 (books)", ["14", r"14\text{ books}", "14 books"], ["15"]),
        ("36 (sq. feet)", ["36", r"36\text{ ft}^2"], ["35"]),
        ("75 (%)", ["75", r"75\%"], ["7.5"]),
        ("7 $m^{2}$", ["7", r"7\text{ m}^2"], ["8"]),
        (r"$3 \mathrm{~cm}$", ["3"], ["4"]),
        ("$2$; $-7$", ["-7, 2"], ["2"]),
        ("$(1,2)$; $(3,4)$", ["(3,4),(1,2)"], ["(2,1),(4,3)"]),
        (r"$x=2$ or $x=3$", ["2,3"], ["2"]),
        ("5 (x)", ["5x"], ["5"]),  # a factor
    ],
    "names with words or primes below or above them": [
        (r"x_{\min}=3", ["3", r"x_{\text{min}}=3", "x_{min}=3"], ["4"]),
        ("3", [r"P_{\max}=3", r"v_{\text{avg}}=3"], [r"\max(3,1)"]),
        (r"y^{\prime\prime}+y=0", ["y''+y=0"], ["y'+y=0"]),
        ("5:9", ["a:b=5:9", r"\frac{A}{B}=5:9", "S_{1}:S_{2}=5:9"], ["9:5", "5:9=10:18"]),
        ("AB:BC=2:3", ["2:3"], ["3:2"]),
    ],
    "what words take back is no matrix": [
        (r"\begin{pmatrix}0&0\\0&0\end{pmatrix}", [r"0\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"A=\begin{pmatrix}0&0\\0&0\end{pmatrix}"],
         [r"\text{not}\begin{pmatrix}0&0\\0&0\end{pmatrix}", r"\text{roughly }\begin{pmatrix}0&0\\0&0\end{pmatrix}"]),
    ],
    "digits count in scientific notation too": [
        (r"\frac{1}{7000}", [r"1.428571428571\times10^{-4}", "0.000142857142857"], [r"1.42857\times10^{-4}", r"1.428571428571\cdot10^{-3}"]),
        (r"10^5\pi", [r"3.14159265359\times10^{5}"], [r"3.1416\times10^5"]),
    ],
    "two units are one quantity, and degrees an angle": [
        ("90 minutes", ["1 hour 30 minutes", r"1\text{ hour and }30\text{ minutes}", r"\text{1 hour, 30 minutes}"], ["1 hour 20 minutes", "30 minutes 1 hour"]),
        ("2 hours 15 minutes", ["135 minutes", "2.25 hours"], ["2 hours", "15 minutes"]),
        ("5 ft 3 in", ["63 inches", r"5\text{ feet }3\text{ inches}"], ["53 inches"]),
        (r"\frac{\pi}{4}", [r"45^\circ", "45°", r"45\text{ degrees}"], ["45", r"90^\circ"]),
        (r"120^\circ", ["120", r"\frac{2\pi}{3}"], [r"\frac{\pi}{3}"]),
    ],
    "long lists": [
        (", ".join(f"{n}/4" for n in range(150)), [", ".join(str(n / 4) for n in reversed(range(150)))], []),
        (", ".join(rf"{n}x+1" for n in range(2, 30)), [", ".join(f"1+{n}x" for n in reversed(range(2, 30)))], []),
        (", ".join(map(str, range(300))), [", ".join(map(str, reversed(range(300))))], [", ".join(map(str, reversed(range(1, 301))))]),
    ],
}  # fmt: skip
